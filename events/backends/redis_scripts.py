"""
The Lua scripts of the Redis log. Redis runs each as a whole: nobody sees half of it.

Every script gets the log's three common keys first: meta (a hash: epoch, head, run, since), log (a stream of all
channels' newest events) and floors (a hash: every channel that has or had a history, and the highest position trimmed
away, "0" for none). What follows are histories, one stream for each channel. An entry's id is `<position>-0`, its
fields are `h` (the text "created_at is_json channel type") and `d` (the data).

A script that finds no log answers with an empty list; all others begin with the epoch and the head. Lua's numbers are
doubles, and become text with 14 digits: more positions than a log ever has.
"""

from __future__ import annotations

import hashlib

from .base import KEY_LIFETIME

#: For how many seconds a row of the outbox is known after it was relayed: longer than a crashed relay rests.
TOKEN_LIFETIME = 86_400.0
#: Entries that one call removes at most: Redis does nothing else meanwhile.
TRIM_LIMIT = 500
#: Entries above its limit that a history is let grow to, so that not every append trims.
SLACK = 64
#: Bytes of data after which a read stops and says that there is more.
READ_BYTES = 1_048_576


class Script:
    """A script and the name by which a server that has seen it knows it."""

    def __init__(self, text: str) -> None:
        self.text = text
        # Not a secret: Redis names scripts so.
        self.sha = hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()


_LOG = """
local epoch, head = unpack(redis.call('HMGET', KEYS[1], 'epoch', 'head'))
if not (epoch and head) then return {} end
head = tonumber(head)
"""

_CUT = f"""
local function name_of(history) return history:sub(#KEYS[1] + 5) end
local function cut(history, keep, length)
  local rest = math.max(keep, length - {TRIM_LIMIT})
  redis.call('XTRIM', history, 'MAXLEN', rest + 1)
  local last = redis.call('XRANGE', history, '-', '+', 'COUNT', 1)[1][1]
  redis.call('XTRIM', history, 'MAXLEN', rest)
  redis.call('HSET', KEYS[3], name_of(history), last:match('^%d+'))
  if rest == 0 then redis.call('DEL', history) end
  return rest
end
"""

#: Sent on each new connection. ARGV: an epoch for a new life, the server's run id or "", whether it has an AOF (0, 1).
#: Answers epoch, head, the run id and the head with which that run began.
HELLO = Script("""
local epoch, head, run = unpack(redis.call('HMGET', KEYS[1], 'epoch', 'head', 'run'))
if not (epoch and head) then
  local histories = KEYS[1]:sub(1, -5) .. 'history:'
  for _, name in ipairs(redis.call('HKEYS', KEYS[3])) do redis.call('DEL', histories .. name) end
  redis.call('DEL', KEYS[2], KEYS[3])
  redis.call('HSET', KEYS[1], 'epoch', ARGV[1], 'head', 0, 'run', ARGV[2], 'since', 0)
elseif ARGV[2] ~= '' and run ~= ARGV[2] then
  redis.call('HSET', KEYS[1], 'run', ARGV[2], 'since', head)
  -- Without an append-only file a server that starts again has forgotten what came after its last snapshot.
  if ARGV[3] == '0' and run and run ~= '' then redis.call('HSET', KEYS[1], 'epoch', ARGV[1]) end
end
local found = redis.call('HMGET', KEYS[1], 'epoch', 'head', 'run', 'since')
return {found[1], tonumber(found[2]), found[3] or '', tonumber(found[4] or 0)}
""")

#: ARGV: the epoch that is over, the next one. Another process may have been first.
RENEW = Script(
    """
if redis.call('HGET', KEYS[1], 'epoch') == ARGV[1] then redis.call('HSET', KEYS[1], 'epoch', ARGV[2]) end
"""
    + _LOG
    + "return {epoch, head}"
)

HEAD = Script(_LOG + "return {epoch, head}")

#: KEYS: the common ones, histories, keys and tokens. ARGV: the log's limit, the number of histories, the time after
#: which a key is still good, 4 or 6 for what each event has: the number of its history in KEYS (0: none), the
#: history's limit, h, d; and, with 6, which of the keys and tokens its key and its token are (0: none). Answers, with
#: 6, {repeated, position, h} for each event. What can go wrong does so before or with the first write: all or nothing.
APPEND = Script(
    _LOG
    + _CUT
    + f"""
local histories, oldest, stride = tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
local lengths, used, results = {{}}, {{}}, {{}}
for i = 4, 3 + histories do lengths[i] = redis.call('XLEN', KEYS[i]) end
for i = 4 + histories, #KEYS do used[KEYS[i]] = redis.call('GET', KEYS[i]) end
local first = head

local function named(number) return number ~= '0' and KEYS[3 + histories + tonumber(number)] end
-- Whether what stands in the stream is of a life that is over, or was written by somebody else.
local function is_in_the_way(added) return added.err:find('equal or smaller', 1, true) end

for i = 5, #ARGV, stride do
  local history, limit, header, data = tonumber(ARGV[i]), tonumber(ARGV[i + 1]), ARGV[i + 2], ARGV[i + 3]
  local key, token, known
  if stride > 4 then
    key, token = named(ARGV[i + 4]), named(ARGV[i + 5])
    known = token and used[token]
    if not known and key and used[key] then
      local created = tonumber(used[key]:match('^%S+ %d+ (%S+)'))
      if created and created >= oldest then known = '1' .. used[key]:sub(2) end
    end
  end
  if known then
    local repeated, position, rest = known:match('^(%d) (%d+) (.*)$')
    results[#results + 1] = {{tonumber(repeated), tonumber(position), rest}}
  else
    local id = (head + 1) .. '-0'
    local added = redis.pcall('XADD', KEYS[2], 'MAXLEN', '~', ARGV[1], id, 'h', header, 'd', data)
    if type(added) == 'table' then
      if not is_in_the_way(added) then return added end
      redis.call('DEL', KEYS[2])
      redis.call('XADD', KEYS[2], id, 'h', header, 'd', data)
    end
    head = head + 1
    if history > 0 then
      if limit > 0 then
        added = redis.pcall('XADD', KEYS[history], id, 'h', header, 'd', data)
        if type(added) == 'table' then
          if not is_in_the_way(added) then return added end
          redis.call('DEL', KEYS[history])
          redis.call('XADD', KEYS[history], id, 'h', header, 'd', data)
          redis.call('HSET', KEYS[3], name_of(KEYS[history]), head - 1)
          lengths[history] = 0
        elseif lengths[history] == 0 then
          redis.call('HSETNX', KEYS[3], name_of(KEYS[history]), 0)
        end
        lengths[history] = lengths[history] + 1
        if lengths[history] >= limit + {SLACK} then
          lengths[history] = cut(KEYS[history], limit, lengths[history])
        end
      else
        redis.call('HSET', KEYS[3], name_of(KEYS[history]), head)
      end
    end
    if stride > 4 then
      results[#results + 1] = {{0, head, header}}
      known = '0 ' .. head .. ' ' .. header
      if key then
        redis.call('SET', key, known, 'PX', {int(KEY_LIFETIME * 1000)})
        used[key] = known
      end
    end
  end
  if token and not used[token] then
    redis.call('SET', token, known, 'PX', {int(TOKEN_LIFETIME * 1000)})
    used[token] = known
  end
end
if head > first then redis.call('HSET', KEYS[1], 'head', head) end
if stride > 4 then return {{epoch, head, results}} end
return {{epoch, head}}
"""
)


def _merge(begin: str, entries: str, comes_first: str) -> str:
    """
    Goes through several streams at once, by small steps, for Redis hands over the data too, into `found`.

    `begin` is where each begins, `entries` how its next entries are got, `comes_first` how positions are compared.
    """
    return f"""
local step = math.min(100, math.ceil(limit / math.max(1, #KEYS - 3)) + 1)
local part, at, from, position = {{}}, {{}}, {{}}, {{}}
local function advance(i)
  repeat
    if at[i] == #part[i] then
      if at[i] > 0 then from[i] = '(' .. part[i][at[i]][1] end
      if at[i] == 0 or at[i] == step then
        part[i] = redis.call({entries}, 'COUNT', step)
        at[i] = 0
      end
      if at[i] == #part[i] then position[i] = nil return end
    end
    at[i] = at[i] + 1
    position[i] = tonumber(part[i][at[i]][1]:match('^(%d+)%-0$'))
  until position[i]
end
for i = 4, #KEYS do
  part[i], at[i], from[i] = {{}}, 0, {begin}
  advance(i)
end
local found, size, more = {{}}, 0, 0
while true do
  local first
  for i = 4, #KEYS do
    if position[i] and (not first or position[i] {comes_first} position[first]) then first = i end
  end
  if not first then break end
  if #found == limit or size >= {READ_BYTES} then more = 1 break end
  local entry = part[first][at[first]]
  found[#found + 1] = entry
  size = size + #(entry[2][4] or '')
  advance(first)
end
"""


#: KEYS: the common ones, then the streams to read. ARGV: after, limit, channels whose floors are wanted. Answers
#: whether there is more, the floors, and the entries of all streams in order.
READ = Script(
    _LOG
    + "local limit, last = tonumber(ARGV[2]), head .. '-0'"
    + _merge(
        "tonumber(ARGV[1]) < 0 and '-' or '(' .. ARGV[1] .. '-0'",
        "'XRANGE', KEYS[i], from[i], last",
        "<",
    )
    + """
local floors = {}
if #ARGV > 2 then floors = redis.call('HMGET', KEYS[3], unpack(ARGV, 3)) end
return {epoch, head, more, floors, found}
"""
)

#: KEYS: the common ones and histories. ARGV: limit. Answers the newest entries of all histories, newest first.
NEWEST = Script(
    _LOG
    + "local limit = tonumber(ARGV[1])"
    + _merge("head .. '-0'", "'XREVRANGE', KEYS[i], from[i], '-'", ">")
    + "return {epoch, head, found}"
)

#: Answers the newest entry of each history, or an empty list.
LATEST = Script(
    _LOG
    + """
local found = {}
for i = 4, #KEYS do found[#found + 1] = redis.call('XREVRANGE', KEYS[i], head .. '-0', '-', 'COUNT', 1)[1] or {} end
return {epoch, head, found}
"""
)

#: Answers the number of entries in each history.
LENGTHS = Script(
    _LOG
    + """
local found = {}
for i = 4, #KEYS do found[#found + 1] = redis.call('XLEN', KEYS[i]) end
return {epoch, head, found}
"""
)

#: Removes some of what is too much or too old. KEYS: the common ones and one history. ARGV: the events to keep or -1,
#: the time of the oldest to keep or "". Answers how many went; 0 when all is as it should be.
TRIM = Script(
    _LOG
    + _CUT
    + f"""
local history, keep, oldest = KEYS[4], tonumber(ARGV[1]), tonumber(ARGV[2])
local length = redis.call('XLEN', history)
if keep >= 0 and length > keep then return {{epoch, head, length - cut(history, keep, length)}} end
if not oldest or length == 0 then return {{epoch, head, 0}} end
local count, last, young, from = 0, nil, false, '-'
repeat
  -- By small steps: Redis hands over the data too.
  local part = redis.call('XRANGE', history, from, '+', 'COUNT', 50)
  for _, entry in ipairs(part) do
    local created = tonumber((entry[2][2] or ''):match('^%S+'))
    if created and created >= oldest then young = true break end
    last, count = entry[1], count + 1
    from = '(' .. last
  end
until young or #part < 50 or count >= {TRIM_LIMIT}
if last then
  redis.call('HSET', KEYS[3], name_of(history), last:match('^%d+'))
  redis.call('XTRIM', history, 'MAXLEN', length - count)
  if length == count then redis.call('DEL', history) end
end
return {{epoch, head, count}}
"""
)

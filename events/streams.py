"""
A stream: one client's open response.

It is a cursor. It holds the position it has written up to, and asks for what follows: from the feeds' rings while they
reach back far enough, from the log where they do not. Replay and live are the same loop.

How its bytes reach the client is the lane's part: `events.responses` and `events.direct`.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import random
from typing import TYPE_CHECKING, Any

from . import draining, limits, wire
from .channels import channel_table
from .compression import HEADER, Checksum, deflate
from .exceptions import BackendUnavailable
from .feeds import MAX_CHUNK, NOTHING, Chunk, Follower, Form, Frame, joined
from .models import Channel
from .rights import moment
from .wire import Cursor

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from .backends.base import StoredEvent
    from .feeds import Audience
    from .hub import Hub
    from .rights import Allowed, Right

logger = logging.getLogger("events.streams")

#: Events that a stream behind its ring reads from the log at once: at first, and at most.
FIRST_READ, READ_LIMIT = 25, 200
#: Writes after which a stream that always finds more lets others run.
WRITES_PER_TURN = 16
#: Where a stream begins that wants all that is kept: below every position, and nothing that was trimmed is missed.
OLDEST = -1
#: Seconds for which the first bytes wait for a log that has not said yet where its head is.
FIRST_BYTES_WAIT = 1.0
#: Seconds until a stream asks again for a log that could not be read.
UNAVAILABLE_RETRY = 1.0

# What a stream has to do before it goes on following.

#: Write the first bytes.
GREET = 1
#: Find where it starts.
BEGIN = 2
#: Say that events may be missing.
RESET = 4
#: Wait until it is known whether the client may read.
HOLD = 8
#: End.
END = 16
#: Follow no further than to where the log was when the response was made: end there.
FINISH = 32


@functools.cache
def say_once(logger: logging.Logger, what: str) -> None:
    """Log what is so for every stream of the process."""
    logger.warning(what)


class Stream(Follower):
    """
    One client's open response: a cursor in the log, and the bytes that follow it.

    `now` is where a stream without a cursor begins: the log's head when the response was made, before its headers left.
    `resume` is the cursor to go on from, as the client sent it. With `replay` it is not where the client stopped but
    the present of its page: what the channels replay to a new stream comes first. `user` and `address` are whom the
    stream counts for (`MAX_STREAMS_PER_USER`, `MAX_STREAMS_PER_ADDRESS`).

    Without `follow` the stream is finite: it writes what there is up to `now`, then `stream-end`, and ends. One that
    ends for any other reason does not say so, and its client knows that something is missing.

    `allowed` says whether the client may read: a visitor, or an async function of the site's own. It is asked at
    intervals, and whenever something tells that rights have changed; when the answer is no, the client is told not to
    come back and the stream ends. `checked` is the `rights.moment` before somebody made sure of it; where that is over,
    no event is written before there is an answer. None: just now.

    A lane calls `open`, then `poll` and, where that cannot say, `advance`, until the stream `is_over`, and `close`.
    """

    __slots__ = (
        "__weakref__",
        "_address",
        "_allowed",
        "_checked",
        "_checksum",
        "_ends_at",
        "_farewell",
        "_keepalive_due",
        "_read_limit",
        "_reason",
        "_right",
        "_todo",
        "_user",
        "_waiter",
        "_waits_since",
        "_work",
        "_written_at",
        "after",
        "earliest",
        "hub",
        "is_over",
        "now",
        "position",
        "replay",
        "resume",
    )

    def __init__(
        self,
        hub: Hub,
        channels: Sequence[str],
        *,
        now: Cursor | None = None,
        resume: str | None = None,
        replay: bool = False,
        earliest: bool = False,
        follow: bool = True,
        envelope: bool = False,
        gzip: bool = False,
        allowed: Allowed = None,
        checked: int | None = None,
        user: str | None = None,
        address: str | None = None,
    ) -> None:
        self.hub = hub
        self.channels = tuple(channels)
        self.form = Form(envelope, gzip)
        self.now = now
        self.resume = resume
        self.replay = replay
        self.earliest = earliest
        self.audience: Audience | None = None
        self.position = 0
        #: Channel to the position above which this stream wants its events; None where that is `position` for all.
        self.after: dict[str, int] | None = None
        #: Nothing more is to be written.
        self.is_over = False
        self._allowed = allowed
        self._checked = checked
        self._right: Right | None = None
        self._user = user
        #: None where nobody counts it: most sites do not, and 10,000 streams need not keep it.
        self._address = limits.address_of(address) if hub.max_streams_per_address is not None else None
        self._todo = GREET | BEGIN if follow else GREET | BEGIN | FINISH
        self._checksum = Checksum() if gzip else None
        self._farewell = b""
        self._read_limit = FIRST_READ
        self._reason = ""
        self._keepalive_due = False
        self._written_at = 0.0
        #: Since when a write waits for the client to take it.
        self._waits_since: float | None = None
        self._ends_at: float | None = None
        self._waiter: asyncio.Future[None] | None = None
        #: What `advance` waits for.
        self._work: asyncio.Task[bytes] | None = None

    # From opening to closing

    def open(self) -> None:
        """Join the hub, unless a limit is reached or the process is about to stop: then the client is put off."""
        hub = self.hub
        if draining.is_draining():
            self.drain()
        elif limit := limits.open_streams.admit(
            self._user, hub.max_streams, hub.max_streams_per_user, self._address, hub.max_streams_per_address
        ):
            limits.reached(limit, self.channels, detail=limits.who(self._user, self._address))
            self._end_with(limits.put_off())
        else:
            hub.attach(self)
            checked = moment() if self._checked is None else self._checked
            self._right = hub.rights.join(self, self._allowed, self._user, checked)
            # The right has it, once for all.
            self._allowed = None
            draining.watch()
            self._written_at = hub.clock
            if hub.max_stream_age is not None:
                # Who came together shall not go together.
                self._ends_at = hub.clock + hub.max_stream_age * random.uniform(0.8, 1)  # noqa: S311 - spreads load

    def close(self) -> None:
        """Leave the hub. More than once does no harm."""
        if self._work is not None:
            self._work.cancel()
            self._work = None
        if self.audience is not None:
            self.hub.detach(self)
            if self._right is not None:
                self.hub.rights.leave(self, self._right)
            limits.open_streams.leave(self._user, self._address)
        self.is_over = True

    # What the hub calls

    def deliver(self) -> None:
        """Write what the audience was given."""
        self.wake()

    def wake(self) -> None:
        """Let the stream look again, if it is waiting."""
        if (waiter := self._waiter) is not None:
            self._waiter = None
            if not waiter.done():
                waiter.set_result(None)

    def look(self, now: float) -> None:
        """Do what is due by the clock."""
        hub = self.hub
        if self._waits_since is not None:
            if now - self._waits_since >= hub.slow_client_timeout:
                limits.reached(limits.SLOW_CLIENT, self.channels)
                self.give_up()
        elif self._ends_at is not None and now >= self._ends_at:
            self._ends_at = None
            limits.reached(limits.STREAM_AGE, self.channels, level=logging.DEBUG)
            self._end_with(wire.prelude(wire.random_retry(hub.retry)))
        elif now - self._written_at >= hub.silence[self.round]:
            # The next look would be too late.
            self._keepalive_due = True
            self.wake()

    def reset_all(self, reason: str) -> None:
        """Tell the client that events may be missing, and go on from the head."""
        if self._todo & FINISH:
            # What it was to end with is of another life of the log.
            self.end()
            return
        self._reason = reason
        self._do(RESET)

    def hold(self) -> None:
        """Write no event until it is known whether the client may read."""
        self._todo |= HOLD

    def release(self) -> None:
        """The client may read: go on."""
        if self._todo & HOLD:
            self._todo &= ~HOLD
            self.wake()

    def refuse(self, reason: str) -> None:
        """The client may not read: tell it not to come back, and end."""
        self._end_with(wire.control("stream-closed", {"reason": reason}))

    def end(self) -> None:
        """End the stream; its client comes back."""
        self._do(END)

    def drain(self) -> None:
        """End the stream, and tell its client when to come back: each at another time, so that they do not storm."""
        first, _ = self.hub.retry
        self._end_with(wire.prelude(wire.random_retry((first, first + round(1000 * self.hub.drain_spread)))))

    def give_up(self) -> None:
        """End without waiting for the client any more."""
        raise NotImplementedError

    def _end_with(self, farewell: bytes) -> None:
        self._farewell = farewell
        self.end()

    def _do(self, what: int) -> None:
        self._todo |= what
        self.wake()

    # What a lane asks

    def poll(self) -> bytes | None:
        """The bytes that follow, b"" where nothing does yet, None where that cannot be said at once: ask `advance`."""
        if self._work is not None:
            # What that finds comes first.
            return None
        if (todo := self._todo & ~FINISH) and not self._settle(todo):
            if todo & END:
                return None
            if todo & GREET:
                # The first bytes can be ready, although what comes then is not.
                return self._greeting() if self.now is not None else None
            return self._keepalive() if todo & HOLD else None
        head = self.hub.head
        if self._todo & FINISH and not self._is_within(head):
            return None
        if self.position < head.position:
            audience = self.audience
            if audience is None or self.position < audience.since():
                return None
            if chunk := self._take(audience, head):
                return self._written(chunk)
        return self._keepalive()

    async def advance(self) -> bytes:
        """The bytes that follow, where they have to be waited for. May return b"": ask again."""
        if self._todo & END:
            self.is_over = True
            return self._last_bytes()
        if self._todo & GREET:
            # "Now" is before the first bytes: who has seen those gets what is published from then on.
            await self.hub.wait_started(FIRST_BYTES_WAIT)
            self.now = self.hub.head
            if self._todo & FINISH and self.hub.now() is None:
                # Nobody can say where it would end.
                self.end()
            return self._greeting()
        loop = asyncio.get_running_loop()
        if (work := self._work) is None:
            work = self._work = self.hub.create_task(self._find_out())
        self._waiter = waiter = loop.create_future()
        await asyncio.wait((work, waiter), return_when=asyncio.FIRST_COMPLETED)
        if work.done():
            self._work = None
            return self._written(chunk) if (chunk := work.result()) else b""
        # However long it takes, the connection is seen to live.
        return self._keepalive()

    def _settle(self, todo: int) -> bool:
        """Begin, where that is all that there is to do and nobody has to be asked. Returns whether it was."""
        if todo != BEGIN or self.replay or self.now is None or self.hub.now() is None:
            return False
        head = self._present()
        if self._todo & FINISH and head != self.now:
            return False
        if self.resume:
            cursor = Cursor.parse(self.resume)
            if cursor is None or cursor.epoch != head.epoch or cursor.position > head.position:
                return False
            self.position = cursor.position
        else:
            after, latest = self._starts(head.position)
            if latest:
                return False
            self._start_at(after)
        self._begun()
        return True

    def _is_within(self, head: Cursor) -> bool:
        """Whether a finite stream can go on in the rings, which reach to `head`. It ends where all is written."""
        goal = self.now or head
        if self.position < goal.position:
            # What the hub has not heard of yet is in the log: whoever names it has it from there.
            return goal.position <= head.position
        # Up to its position, and not only to the goal: events may have come meanwhile.
        self._farewell = wire.control("stream-end", {"cursor": str(Cursor(goal.epoch, self.position))})
        self._todo |= END
        return False

    def _greeting(self) -> bytes:
        self._todo &= ~GREET
        first = self._packed(wire.prelude(wire.random_retry(self.hub.retry)))
        return self._written(HEADER + first if self._checksum else first)

    def _keepalive(self) -> bytes:
        """What breaks the silence, where that is due."""
        return self._written(self._packed(wire.KEEPALIVE)) if self._keepalive_due else b""

    def _last_bytes(self) -> bytes:
        farewell = self._packed(self._farewell) if self._farewell else b""
        if self._checksum is None:
            return farewell
        return (HEADER if self._todo & GREET else b"") + farewell + self._checksum.trailer()

    def _written(self, chunk: bytes) -> bytes:
        self._keepalive_due = False
        self._written_at = self.hub.clock
        return chunk

    def _packed(self, text: bytes) -> bytes:
        """Bytes that are this stream's alone, as its client wants them."""
        if self._checksum is None:
            return text
        self._checksum.add(text)
        return deflate(text)

    def _counted(self, chunk: Chunk) -> bytes:
        """Bytes that others get, too."""
        if self._checksum is not None:
            self._checksum.add(chunk.text)
        return chunk.sent

    def _shared(self, audience: Audience) -> Chunk | None:
        """What the audience was given last, where that is what follows for this stream."""
        return audience.chunk if self.after is None and audience.after <= self.position < audience.first else None

    def _take(self, audience: Audience, head: Cursor) -> bytes:
        """What follows in the rings; the stream moves on. Empty where its channels have nothing new."""
        if (chunk := self._shared(audience)) is not None:
            self.position = head.position
            return self._counted(chunk)
        waiting = audience.newer(self.position)
        frames = []
        size = 0
        self.position = head.position
        while waiting:
            frame = waiting.pop()
            if self._wants(frame.event):
                frames.append(frame)
                size += len(frame.encoded(self.form.envelope))
                if size >= MAX_CHUNK:
                    # The next write goes on where this one ends.
                    self.position = frame.position
                    break
        self._forget_after()
        return self._counted(joined(frames, self.form) if frames else NOTHING)

    def _wants(self, event: StoredEvent) -> bool:
        """Whether the event is above where this stream begins in its channel."""
        return self.after is None or event.position > self.after[event.channel]

    def _forget_after(self) -> None:
        """Once past where every channel is wanted from, the position says it all."""
        if self.after is not None and self.position >= max(self.after.values()):
            self.after = None

    # What takes time

    async def _find_out(self) -> bytes:
        """Do the next of what is to be done. Returns what the client is told of it."""
        # A finite stream has kept where it ends.
        head = self.now or self.hub.head
        if self._todo & BEGIN:
            text = await self._begin()
            self._begun()
            return self._packed(text) if text else b""
        if self._todo & HOLD:
            return b""
        if self._todo & RESET:
            self._todo &= ~RESET
            return self._packed(self._start_over(self._reason, head))
        return await self._read(head)

    def _present(self) -> Cursor:
        """The present, for a stream that begins: when its response was made, unless the log is another one since."""
        head = self.hub.head
        return self.now if self.now is not None and self.now.epoch == head.epoch else head

    def _begun(self) -> None:
        self._todo &= ~BEGIN
        self.resume = None
        if not self._todo & FINISH:
            self.now = None

    async def _begin(self) -> bytes:
        """Find where the stream starts. Returns the control event that says so, where something may be missing."""
        await self.hub.wait_started()
        if self._todo & END:
            return b""
        head = self._present()
        if self._todo & FINISH and head != self.now:
            # The log is another one than the response has told of.
            self.end()
            return b""
        if not self.resume:
            await self._begin_new(head.position)
            return b""
        cursor = Cursor.parse(self.resume)
        if cursor is None:
            return self._start_over("unknown", head)
        if cursor.epoch != head.epoch:
            return self._start_over("epoch", head)
        if cursor.position > head.position:
            # Another process may be ahead of this one's tail; nobody is ahead of the log.
            known = await self._patiently(self.hub.backend.ahead)
            if cursor.epoch != known.epoch or cursor.position > known.position:
                return self._start_over("unknown", head)
            if self._todo & FINISH:
                # What the client has seen is the past.
                self.now = cursor
        if self.replay:
            await self._begin_new(cursor.position)
        else:
            self.position = cursor.position
        return b""

    def _starts(self, now: int) -> tuple[dict[str, int], list[str]]:
        """
        Where a first connect starts in each channel: what its `replay` says, or all where the client asked for that.

        `now` is the position that the client takes for the present: the head, or what its page was rendered at. With
        it the channels of which the latest event is wanted, which only the log knows.
        """
        after = dict.fromkeys(self.channels, now)
        latest = []
        for name in self.channels:
            row = channel_table.find(name)
            replay = Channel.Replay.ALL if self.earliest else row.replay if row else Channel.Replay.NOTHING
            if replay == Channel.Replay.ALL:
                after[name] = OLDEST
            elif replay == Channel.Replay.LATEST:
                latest.append(name)
        return after, latest

    async def _begin_new(self, now: int) -> None:
        after, latest = self._starts(now)
        if latest:
            found = await self._patiently(lambda: self.hub.backend.alatest(latest))
            after.update((name, min(event.position - 1, now)) for name, event in found.items())
        self._start_at(after)

    def _start_at(self, after: dict[str, int]) -> None:
        self.position = min(after.values())
        # Where all begin at one place, `position` says it all.
        self.after = None if len(set(after.values())) == 1 else after

    def _start_over(self, reason: str, head: Cursor) -> bytes:
        """The cursor means nothing here: say so, and go on live, or from the oldest event if the client wants that."""
        self._start_at(dict.fromkeys(self.channels, OLDEST if self.earliest else head.position))
        return self._reset_event(self.channels, reason, head)

    def _reset_event(self, channels: Sequence[str], reason: str, head: Cursor) -> bytes:
        return wire.control("stream-reset", {"channels": list(channels), "reason": reason, "cursor": str(head)})

    async def _read(self, head: Cursor) -> bytes:
        """A chunk from the log: what the rings do not hold any more, or not yet."""
        start = self.position
        wanted = self.after or dict.fromkeys(self.channels, start)
        # What a channel is wanted from lies above all that is read here: leave its events where they are.
        names = [name for name in self.channels if wanted[name] < head.position]
        found = await self._patiently(lambda: self.hub.backend.aread(names, start, self._read_limit))
        if found.head.epoch != head.epoch:
            # The log began a new life, and the tail is about to say so to all.
            await asyncio.sleep(0.01)
            return b""
        parts = []
        floors = {name: found.floors.get(name, 0) for name in names}
        # Who wants all that is kept misses nothing that was trimmed before; what is trimmed from now on counts.
        oldest = [name for name in names if wanted[name] == OLDEST]
        trimmed = [name for name in names if wanted[name] != OLDEST and floors[name] > max(start, wanted[name])]
        if oldest or trimmed:
            goes_on = {name: floors[name] if self.earliest else head.position for name in trimmed}
            self.after = {**wanted, **{name: floors[name] for name in oldest}, **goes_on}
        if trimmed:
            parts.append(self._reset_event(trimmed, "trimmed", head))
        # The rings go on above the head: nothing of them is written here.
        self.position = min(found.events[-1].position, head.position) if found.more else head.position
        size = 0
        self._read_limit = min(2 * self._read_limit, READ_LIMIT)
        for number, event in enumerate(found.events, 1):
            if event.position > head.position:
                break
            if self._wants(event):
                parts.append(Frame(event, head.epoch).encoded(self.form.envelope))
                size += len(parts[-1])
                if size >= MAX_CHUNK:
                    self.position = event.position
                    # Large events: what is read beyond one write is read again.
                    self._read_limit = number
                    break
        self._forget_after()
        return self._packed(b"".join(parts)) if parts else b""

    async def _patiently(self, ask: Callable[[], Awaitable[Any]]) -> Any:
        """What the log answers, however long it cannot be reached: the stream stays open meanwhile."""
        while True:
            try:
                return await ask()
            except BackendUnavailable as error:
                # That the log is away is said once, by what follows it.
                logger.debug("a stream waits for the log: channels=%s error=%s", ",".join(self.channels), error)
                await asyncio.sleep(UNAVAILABLE_RETRY)

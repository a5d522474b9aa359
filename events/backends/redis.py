"""
The log in Redis 6.2 or newer, or in Valkey: many processes on many machines.

All keys begin with `{<prefix>}:`, one hash tag, so that a cluster keeps them together. What an append does is one Lua
script (`redis_scripts`): number, write to the stream of all channels and to those of its channels, keep within limits.
The tail blocks on the first of these streams; reads of a channel's past go to the others.

**What Redis forgets is proven, not guessed.** The log's own record (`meta`) names its epoch, its head, the run id of
the server that wrote it, and the head with which that run began. Each new connection compares: a log that is gone
begins anew at 0; a server that started again without an append-only file has lost what came after its snapshot, so the
epoch is renewed; and so it is where a process remembers a position above the one with which the server's run began.

**What is sent to Redis** is written as generators of commands, which one function runs on a blocking connection and
another on an asynchronous one. They use redis-py's connections and not its clients, which cost a publish more time than
Redis takes.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import re
import sys
import threading
import time
import weakref
from collections.abc import Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, NoReturn, TypeVar

from django.core import checks

from ..exceptions import BackendUnavailable, EventsError, InvalidEventBackend
from ..wire import Cursor
from . import redis_scripts as scripts
from .background import Outage, TrimmingBackend
from .base import (
    CONTROL_CHANNEL,
    KEY_LIFETIME,
    Batch,
    NewEvent,
    Params,
    PublishedEvent,
    ReadResult,
    Retention,
    StoredEvent,
    new_epoch,
)
from .outbox import Outbox, Relay

try:
    from redis import connection, exceptions
    from redis.asyncio import connection as async_connection
except ImportError as error:
    raise ImportError(
        f'RedisBackend needs redis-py 5.1 or newer ({error}): pip install "django-live-events[redis]"'
    ) from error

if sys.version_info >= (3, 11):
    from asyncio import timeout as limit_of
else:  # pragma: no cover - redis-py brings it for Pythons that lack the above
    from async_timeout import timeout as limit_of

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Collection, Generator

    from .redis_scripts import Script

    T = TypeVar("T")
    #: Yields commands to be sent at once, is sent their replies, and returns the result.
    Steps = Generator[list[tuple[Any, ...]], list[Any], T]

logger = logging.getLogger("events.backends.redis")

#: Events that the tail reads at once.
TAIL_LIMIT = 500
#: Seconds for which the tail blocks: how long a new epoch may stay unseen while nobody publishes.
BLOCK = 1.0
#: Idle connections kept by a process, and connections that one event loop reads with, besides its tail's.
MAX_IDLE, MAX_READING = 32, 4
#: Channels that one call looks at.
CHANNELS_AT_ONCE = 500

OLDEST_VERSION, VERSION_WITH_WAITAOF = (6, 2), (7, 2)

#: Said by a server that has done nothing.
_REFUSED = (exceptions.ResponseError, exceptions.BusyLoadingError, exceptions.AuthenticationError)
_PREFIX = re.compile(r"[A-Za-z0-9._:-]{1,50}")


class Server(NamedTuple):
    """What a server says of itself; empty where it may not be asked."""

    run: str = ""
    has_aof: bool = False
    version: tuple[int, ...] = ()
    eviction: str = ""


class Seen(NamedTuple):
    """The newest event that this process knows of, and the run that the log's record named when it was seen."""

    epoch: str
    position: int
    run: str


class RedisBackend(TrimmingBackend):
    """
    The log in Redis or Valkey.

    Options: `url` as redis-py reads it (`redis://`, `rediss://`, `unix://`, with user and password), `prefix` of all
    keys, `timeout` in seconds for connecting and for an answer; `log_events`, the newest events of all channels, which
    is how far behind a process may fall without reading histories; `history_events`, a limit for every channel, also
    where the admin sets none; `trim_interval`, seconds between two background trims (None: only `prune_events` trims).

    `wait_replicas`, how many replicas must have an event, and `wait_aof`, whether it must be on the disk, before
    `publish()` returns. `outbox`: write to the site's database (`database`, an alias) first, as part of the surrounding
    transaction, and relay from there. `cluster`: the URL is a node of a Redis Cluster. `sentinels`, a list of
    `(host, port)`, with `service`, the name they know the master by, and `sentinel_options` for connecting to them.
    `client_options` go to redis-py's connections.
    """

    default_options: ClassVar[dict[str, Any]] = {
        "url": "redis://127.0.0.1:6379/0",
        "prefix": "events",
        "timeout": 5.0,
        "log_events": 10_000,
        "history_events": 100_000,
        "trim_interval": 30.0,
        "wait_replicas": 0,
        "wait_aof": False,
        "outbox": False,
        "database": None,
        "cluster": False,
        "sentinels": (),
        "service": None,
        "sentinel_options": {},
        "client_options": {},
    }

    logger = logger

    def __init__(self, params: Params) -> None:
        super().__init__(params)
        self._validate()
        options = self.options
        url = options["url"]
        try:
            blocking = connection.parse_url(url)  # type: ignore[no-untyped-call]
            asynchronous: Mapping[str, Any] = async_connection.parse_url(url)
        except (ValueError, AttributeError, TypeError) as error:
            # Without the URL itself: it may hold a password.
            raise InvalidEventBackend(
                f"EVENTS['BACKENDS'][{self.alias!r}]['OPTIONS']['url'] is nothing that redis-py can read: {error}"
            ) from error
        self._class: Any = blocking.pop("connection_class", connection.Connection)
        self._async_class: Any = asynchronous.get("connection_class", async_connection.Connection)
        self._connection_options: dict[str, Any] = {
            "socket_timeout": options["timeout"],
            "socket_connect_timeout": options["timeout"],
            **blocking,
            **options["client_options"],
            # Replies are read here: they are to look alike whatever the server prefers.
            "protocol": 2,
            "decode_responses": False,
        }
        self._connection_options.pop("max_connections", None)
        if self._class is not connection.UnixDomainSocketConnection:
            self._connection_options = {"host": "localhost", "port": 6379, **self._connection_options}
        elif options["cluster"] or options["sentinels"]:
            self._wrong("url", "redis:// or rediss:// where others say which server to ask")
        try:
            # Connects to nothing yet.
            self._class(**self._connection_options)
        except (TypeError, ValueError, exceptions.RedisError) as error:
            raise InvalidEventBackend(
                f"EVENTS['BACKENDS'][{self.alias!r}]['OPTIONS'] has in 'url' or 'client_options' what redis-py's "
                f"connections do not take: {error}"
            ) from error
        self._timeout = float(options["timeout"])

        tag = f"{{{options['prefix']}}}:"
        self._meta, self._log, self._floors = (f"{tag}{name}" for name in ("meta", "log", "floors"))
        self._common = (self._meta, self._log, self._floors)
        self._history = f"{tag}history:"
        self._key = f"{tag}key:"
        self._token = f"{tag}token:"
        self._claim = f"{tag}trimming"

        # See `_append_one`: what comes before the history's key, and between that and its limit.
        command = ("EVALSHA", scripts.APPEND.sha, "4", *self._common)
        self._most: int = options["history_events"]
        self._must_confirm = options["wait_aof"] or options["wait_replicas"] > 0
        self._packed_one = (
            b"*15\r\n" + _bulk(*command),
            _bulk(str(options["log_events"]), "1", "0", "4", "4"),
        )

        self._said: set[str] = set()
        self.joins_transactions = options["outbox"]
        self._server = Server()
        self._run = ""
        self._seen: Seen | None = None
        #: Where the log is, as a node of the cluster or a sentinel said; and the nodes that the cluster had then.
        self._address: tuple[str, int] | None = None
        self._nodes: list[tuple[str, int]] = []
        self._inherited: list[object] = []
        self._begin_process()

    @property
    def database(self) -> str | None:
        """The alias of the outbox's database; None without an outbox."""
        return None if self._outbox is None else self._outbox.database

    def _check_process(self) -> None:
        if self._pid != os.getpid():
            self._begin_process()

    def _begin_process(self) -> None:
        """What is this process's own. After a fork: connections, and whoever holds a lock, are the parent's."""
        self._pid = os.getpid()
        self._idle: list[Any] = []
        self._pools: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, _Pool] = weakref.WeakKeyDictionary()
        # Kept for good: as garbage they would be closed, and with them what the parent's event loops wait for.
        self._inherited.append(self._pools)
        self._trimming = threading.Lock()
        self._outbox = Outbox(self.alias, self.options["database"]) if self.options["outbox"] else None

    def _validate(self) -> None:
        def is_number(value: Any) -> bool:
            return isinstance(value, (int, float)) and not isinstance(value, bool) and value > 0

        def is_count(value: Any, least: int) -> bool:
            return isinstance(value, int) and not isinstance(value, bool) and value >= least

        options = self.options
        if not (isinstance(options["prefix"], str) and _PREFIX.fullmatch(options["prefix"])):
            self._wrong("prefix", "1 to 50 characters of A-Z a-z 0-9 . _ : -")
        if not is_number(options["timeout"]):
            self._wrong("timeout", "a number of seconds above 0")
        for name in ("log_events", "history_events"):
            if not is_count(options[name], 1):
                self._wrong(name, "a whole number above 0")
        if not is_count(options["wait_replicas"], 0):
            self._wrong("wait_replicas", "a whole number of replicas, or 0")
        for name in ("wait_aof", "outbox", "cluster"):
            if not isinstance(options[name], bool):
                self._wrong(name, "True or False")
        for name in ("sentinel_options", "client_options"):
            if not isinstance(options[name], Mapping):
                self._wrong(name, "a dictionary of what redis-py takes")
        sentinels = options["sentinels"]
        if not isinstance(sentinels, Sequence) or not all(
            isinstance(pair, Sequence) and len(pair) == 2 and isinstance(pair[0], str) and is_count(pair[1], 1)
            for pair in sentinels
        ):
            self._wrong("sentinels", 'a list of (host, port), as [("10.0.0.1", 26379)]')
        if sentinels and not (options["service"] and isinstance(options["service"], str)):
            self._wrong("service", "the name that the sentinels know the master by")
        if sentinels and options["cluster"]:
            self._wrong("cluster", "False where sentinels are named: a cluster has none")

    def _wrong(self, name: str, right: str) -> NoReturn:
        shown = "" if name == "url" else f" is {self.options[name]!r}"
        raise InvalidEventBackend(
            f"EVENTS['BACKENDS'][{self.alias!r}]['OPTIONS'][{name!r}]{shown}: it must be {right}."
        )

    def _say_once(self, message: str, *args: object) -> None:
        if message not in self._said:
            self._said.add(message)
            logger.warning(message, *args)

    # What is sent

    def _evaluate(self, script: Script, keys: Sequence[str], args: Sequence[Any]) -> Steps[list[Any]]:
        return (yield from self._evaluate_after((), script, keys, args))[-1]  # type: ignore[no-any-return]

    def _evaluate_after(
        self, first: Sequence[tuple[Any, ...]], script: Script, keys: Sequence[str], args: Sequence[Any]
    ) -> Steps[list[Any]]:
        """The replies to the commands `first` and to the script, which reaches Redis with them."""
        try:
            return (yield [*first, ("EVALSHA", script.sha, len(keys), *keys, *args)])
        except exceptions.NoScriptError:
            return (yield [("EVAL", script.text, len(keys), *keys, *args)])

    def _call(self, script: Script, keys: Sequence[str] = (), args: Sequence[Any] = ()) -> Steps[list[Any]]:
        """Run a script on the log. The reply's epoch is text, and a log that went backwards has a new one."""
        return (yield from self._call_after((), script, keys, args))[-1]  # type: ignore[no-any-return]

    def _call_after(
        self, first: Sequence[tuple[Any, ...]], script: Script, keys: Sequence[str], args: Sequence[Any]
    ) -> Steps[list[Any]]:
        before = self._seen
        while True:
            replies = yield from self._evaluate_after(first, script, (*self._common, *keys), args)
            if reply := replies[-1]:
                break
            # Redis was emptied since the connection was made.
            yield from self._hello()
        reply[0] = yield from self._compare(before, reply)
        return replies

    def _compare(self, before: Seen | None, reply: Sequence[Any]) -> Steps[str]:
        """The epoch of a reply, a new one where the log went backwards since `before`."""
        epoch: str = reply[0].decode()
        head: int = reply[1]
        if before is not None and epoch == before.epoch and head < before.position:
            # An older state took the log's place: what is published now gets numbers that other events had.
            epoch, _ = yield from self._renew(epoch)
        self._saw(epoch, head)
        return epoch

    def _saw(self, epoch: str, position: int) -> None:
        seen = self._seen
        if seen is None or epoch != seen.epoch or position > seen.position:
            self._seen = Seen(epoch, position, self._run)

    def _renew(self, epoch: str) -> Steps[tuple[str, int]]:
        """Begin a new life of the log, unless another process has."""
        found = yield from self._evaluate(scripts.RENEW, self._common, (epoch, new_epoch()))
        logger.warning("the log went backwards and has a new epoch: backend=%s old=%s", self.alias, epoch)
        return found[0].decode(), found[1]

    def _greet(self) -> Steps[None]:
        """The first words on each new connection: who is there, and whether the log is the one we know."""
        self._server = yield from self._ask_server()
        if self._server.eviction.startswith("allkeys-"):
            self._say_once(
                "Redis may drop the log when its memory is full: backend=%s maxmemory-policy=%s. Set it to noeviction.",
                self.alias,
                self._server.eviction,
            )
        yield from self._hello()

    def _ask_server(self) -> Steps[Server]:
        try:
            (info,) = yield [("INFO",)]
        except exceptions.ResponseError as error:
            self._say_once(
                "Redis does not say who it is, so a restart goes unseen: backend=%s error=%s", self.alias, error
            )
            return Server()
        found = dict(line.split(":", 1) for line in info.decode(errors="replace").splitlines() if ":" in line)
        return Server(
            run=found.get("run_id", ""),
            has_aof=found.get("aof_enabled") == "1",
            version=tuple(int(part) for part in re.findall(r"\d+", found.get("redis_version", ""))[:2]),
            eviction=found.get("maxmemory_policy", ""),
        )

    def _hello(self) -> Steps[None]:
        server, seen = self._server, self._seen
        args = (new_epoch(), server.run, int(server.has_aof))
        found, head, run, since = yield from self._evaluate(scripts.HELLO, self._common, args)
        epoch = found.decode()
        if seen is not None and epoch == seen.epoch:
            # Another process may have published since the restart: it is where the restart began that counts.
            began = since if run.decode() != seen.run else head
            if min(began, head) < seen.position:
                epoch, head = yield from self._renew(epoch)
        self._run = run.decode()
        self._seen = Seen(epoch, head, self._run)

    # Connections

    def _where(self) -> str:
        options = self._options_now()
        return str(options.get("path") or f"{options['host']}:{options['port']}")

    def _options_now(self) -> dict[str, Any]:
        if self._address is None:
            return self._connection_options
        return {**self._connection_options, "host": self._address[0], "port": self._address[1]}

    def _guides(self) -> list[tuple[bool, dict[str, Any]]]:
        """Whom to ask where the log is, and whether with TLS: sentinels, or any node of the cluster."""
        options = self._connection_options
        if self.options["sentinels"]:
            own = {"socket_timeout": self._timeout, "socket_connect_timeout": self._timeout, "protocol": 2}
            own.update(self.options["sentinel_options"])
            has_tls = bool(own.pop("ssl", False))
            return [(has_tls, {**own, "host": host, "port": port}) for host, port in self.options["sentinels"]]
        has_tls = issubclass(self._class, connection.SSLConnection)
        nodes = [{**options, "host": host, "port": port} for host, port in self._nodes]
        return [(has_tls, node) for node in [options, *nodes]]

    def _ask_guide(self, guide: dict[str, Any]) -> Steps[None]:
        if self.options["sentinels"]:
            (found,) = yield [("SENTINEL", "GET-MASTER-ADDR-BY-NAME", self.options["service"])]
            if found is None:
                raise exceptions.ConnectionError(f"the sentinel knows no master {self.options['service']!r}")
            self._address = (found[0].decode(), int(found[1]))
            return
        slot, ranges = yield [("CLUSTER", "KEYSLOT", self._meta), ("CLUSTER", "SLOTS")]

        def address(node: list[Any]) -> tuple[str, int]:
            # A node that does not know its own name means the one it was asked by.
            return (node[0].decode() if node[0] else guide["host"], node[1])

        self._nodes = [address(node) for _, _, *nodes in ranges for node in nodes]
        for first, last, master, *_ in ranges:
            if first <= slot <= last:
                self._address = address(master)
                return
        raise exceptions.ConnectionError(f"no node of the cluster has the slot {slot} of {self._meta}")

    @property
    def _needs_guide(self) -> bool:
        return self._address is None and bool(self.options["cluster"] or self.options["sentinels"])

    def _connect(self, steps: Steps[T]) -> tuple[Any, T]:
        """A new connection, and what the first steps on it said. Raises what redis-py raises."""
        if self._needs_guide:
            errors = []
            for has_tls, guide in self._guides():
                kind = connection.SSLConnection if has_tls else connection.Connection
                try:
                    _open(kind, guide, self._ask_guide(guide))[0].disconnect()
                    break
                except exceptions.RedisError as error:
                    errors.append(f"{guide['host']}:{guide['port']}: {error}")
            else:
                raise exceptions.ConnectionError("; ".join(errors))
        return _open(self._class, self._options_now(), steps)

    async def _aconnect(self) -> Any:
        """`_connect` without blocking the loop."""
        if self._needs_guide:
            errors = []
            for has_tls, guide in self._guides():
                kind = async_connection.SSLConnection if has_tls else async_connection.Connection
                try:
                    await (await self._aopen(kind, guide, self._ask_guide(guide)))[0].disconnect(nowait=True)
                    break
                except exceptions.RedisError as error:
                    errors.append(f"{guide['host']}:{guide['port']}: {error}")
            else:
                raise exceptions.ConnectionError("; ".join(errors))
        return (await self._aopen(self._async_class, self._options_now(), self._greet()))[0]

    async def _aopen(self, kind: Any, options: Mapping[str, Any], steps: Steps[T]) -> tuple[Any, T]:
        # redis-py's own limit on sending is `asyncio.wait_for`, which swallows a cancellation before Python 3.12.
        made = kind(**{**options, "socket_timeout": None})
        try:
            async with self._limit():
                await made.connect()
            return made, await self._adrive(made, steps)
        except BaseException:
            await made.disconnect(nowait=True)
            raise

    @asynccontextmanager
    async def _limit(self) -> AsyncGenerator[None, None]:
        try:
            async with limit_of(self._timeout):
                yield
        except asyncio.TimeoutError:
            raise exceptions.TimeoutError(f"no answer within {self._timeout:g} s") from None

    async def _adrive(self, borrowed: Any, steps: Steps[T]) -> T:
        """`_drive` without blocking the loop."""
        try:
            commands = next(steps)
            while True:
                replies, failed = [], None
                async with self._limit():
                    await borrowed.send_packed_command(_packed(borrowed, commands))
                    for _ in commands:
                        try:
                            replies.append(await borrowed.read_response())
                        except exceptions.ResponseError as error:
                            failed = failed or error
                commands = steps.throw(failed) if failed else steps.send(replies)
        except StopIteration as done:
            return done.value  # type: ignore[no-any-return]

    def _borrow(self) -> Any:
        """An idle connection that the server has not closed, or a new one."""
        while True:
            try:
                found = self._idle.pop()
            except IndexError:
                return self._connect(self._greet())[0]
            try:
                if not found.can_read():
                    return found
            except (exceptions.RedisError, OSError):
                pass
            found.disconnect()

    def _give_back(self, borrowed: Any, error: BaseException | None = None) -> None:
        """Keep the connection, unless the error leaves open what it would answer next."""
        if error is not None and not _is_answer(error):
            self._address = None
            if borrowed is not None:
                borrowed.disconnect()
        elif borrowed is not None:
            if len(self._idle) < MAX_IDLE:
                self._idle.append(borrowed)
            else:
                borrowed.disconnect()

    def _run_steps(self, make_steps: Callable[[], Steps[T]], failed: str) -> T:
        return self._execute(lambda borrowed: _drive(borrowed, make_steps()), failed)

    def _execute(self, work: Callable[[Any], T], failed: str, lost: str | None = None) -> T:
        """
        Do the work with a connection; once more where a server says that another one is to be asked.

        Raises `BackendUnavailable`: what `failed`, or is `lost` when nobody knows whether Redis did it, and why.
        """
        tries = 2
        while True:
            tries -= 1
            borrowed = None
            try:
                self._check_process()
                borrowed = self._borrow()
                result = work(borrowed)
            except BaseException as error:
                self._give_back(borrowed, error)
                if _is_elsewhere(error) and tries:
                    continue
                if isinstance(error, exceptions.RedisError):
                    is_lost = borrowed is not None and not isinstance(error, _REFUSED)
                    raise self._unavailable(lost if lost and is_lost else failed, error) from error
                raise
            self._give_back(borrowed)
            return result

    def _unavailable(self, what: str, error: Exception) -> BackendUnavailable:
        verb = "says" if isinstance(error, exceptions.ResponseError) else "cannot be reached"
        return BackendUnavailable(f"{what}: Redis at {self._where()} {verb}: {error}")

    async def _aexecute(self, make_steps: Callable[[], Steps[T]], failed: str) -> T:
        """`_execute` without blocking the loop, for what may be done twice."""
        pool = self._pool()
        if pool is None:
            # Nobody follows the log on this loop: a connection that is kept would outlive it.
            return await self._aexecute_with(_Pool(), make_steps, failed)
        try:
            async with limit_of(self._timeout):
                await pool.room.acquire()
        except asyncio.TimeoutError:
            raise BackendUnavailable(
                f"{failed}: {MAX_READING} other reads of this process have been waiting for Redis at {self._where()} "
                f"for {self._timeout:g} s."
            ) from None
        try:
            return await self._aexecute_with(pool, make_steps, failed)
        finally:
            pool.room.release()

    async def _aexecute_with(self, pool: _Pool, make_steps: Callable[[], Steps[T]], failed: str) -> T:
        tries = 2
        while True:
            borrowed = pool.idle.pop() if pool.idle else None
            was_idle = borrowed is not None
            try:
                if borrowed is None:
                    tries -= 1
                    borrowed = await self._aconnect()
                result = await self._adrive(borrowed, make_steps())
            except BaseException as error:
                if _is_answer(error) and borrowed is not None:
                    await pool.keep(borrowed)
                else:
                    self._address = None
                    if borrowed is not None:
                        await borrowed.disconnect(nowait=True)
                if was_idle and isinstance(error, exceptions.ConnectionError):
                    # The server closed it while it was idle.
                    continue
                if _is_elsewhere(error) and tries:
                    continue
                if isinstance(error, exceptions.RedisError):
                    raise self._unavailable(failed, error) from error
                raise
            await pool.keep(borrowed)
            return result

    def _pool(self) -> _Pool | None:
        """The connections that this event loop reads with, while somebody follows the log on it."""
        self._check_process()
        return self._pools.get(asyncio.get_running_loop())

    # Writing

    def append(self, events: Sequence[NewEvent]) -> list[PublishedEvent]:
        """Write the events to Redis, in one script; with an outbox, to the site's database first."""
        if not events:
            return []
        self._check_process()
        if self._outbox is not None:
            return self._outbox.append(events, self._append)
        return self._append(events)

    def _append(self, events: Sequence[NewEvent], tokens: Sequence[str] | None = None) -> list[PublishedEvent]:
        def write(borrowed: Any) -> list[PublishedEvent]:
            return _drive(borrowed, self._append_steps(events, tokens))

        is_plain = len(events) == 1 and tokens is None and events[0].key is None and not self._must_confirm
        return self._execute(
            partial(self._append_one, events[0]) if is_plain else write,
            "nothing was published",
            "nobody knows whether this was published, the answer is missing (with a key, publishing again is safe)",
        )

    def _append_one(self, event: NewEvent, borrowed: Any) -> list[PublishedEvent]:
        """
        What `_append_steps` does, for the usual case: one event without a key.

        Written out, and its command packed by hand: the general way takes half as long again as Redis itself.
        """
        channel = event.channel
        if channel == CONTROL_CHANNEL:
            return _drive(borrowed, self._append_steps([event], None))
        most = self._most
        limit = b"%d" % (most if event.keep is None or event.keep > most else event.keep)
        history = (self._history + channel).encode()
        header = _header(event, time.time()).encode()
        data = event.data.encode()
        before, middle = self._packed_one
        packed = b"%b$%d\r\n%b\r\n%b$%d\r\n%b\r\n$%d\r\n%b\r\n$%d\r\n%b\r\n" % (
            *(before, len(history), history),
            *(middle, len(limit), limit),
            *(len(header), header),
            *(len(data), data),
        )
        seen = self._seen
        try:
            borrowed.send_packed_command((packed,))
            reply = borrowed.read_response()
        except exceptions.NoScriptError:
            reply = ()
        if not reply:
            # Redis knows neither the script nor the log any more: as for any other.
            return _drive(borrowed, self._append_steps([event], None))
        epoch, head = reply[0].decode(), reply[1]
        if seen is not None and epoch == seen.epoch and head > seen.position:
            self._seen = Seen(epoch, head, self._run)
        else:
            epoch = _drive(borrowed, self._compare(seen, reply))
        return [PublishedEvent(channel=channel, event=event.type, id=f"{epoch}-{head}")]

    def _append_steps(self, events: Sequence[NewEvent], tokens: Sequence[str] | None) -> Steps[list[PublishedEvent]]:
        if self.options["wait_aof"] and (0,) < self._server.version < VERSION_WITH_WAITAOF:
            self._wrong("wait_aof", f"False with Redis {_dotted(self._server.version)}: WAITAOF came with 7.2")
        now = time.time()
        has_keys = tokens is not None or any(event.key is not None for event in events)
        most = self._most
        histories: dict[str, int] = {}
        keys: list[str] = []
        args: list[Any] = []
        for index, event in enumerate(events):
            channel = event.channel
            if channel == CONTROL_CHANNEL:
                history = 0
            elif (history := histories.get(channel, 0)) == 0:
                history = histories[channel] = len(histories) + 4
            limit = most if event.keep is None else min(event.keep, most)
            args += (history, limit, _header(event, now), event.data)
            if has_keys:
                key = token = 0
                if event.key is not None:
                    keys.append(f"{self._key}{channel}:{event.key}")
                    key = len(keys)
                if tokens is not None:
                    keys.append(self._token + tokens[index])
                    token = len(keys)
                args += (key, token)
        reply = yield from self._call(
            scripts.APPEND,
            (*(self._history + channel for channel in histories), *keys),
            (self.options["log_events"], len(histories), now - KEY_LIFETIME, 6 if has_keys else 4, *args),
        )
        epoch, head, *results = reply
        if self._must_confirm:
            yield from self._confirm()
        if not has_keys:
            return [
                PublishedEvent(channel=event.channel, event=event.type, id=f"{epoch}-{position}")
                for position, event in enumerate(events, head - len(events) + 1)
            ]
        return [
            PublishedEvent(
                channel=event.channel,
                event=header.decode().split(" ", 3)[3],
                id=f"{epoch}-{position}",
                repeated=bool(repeated),
            )
            for event, (repeated, position, header) in zip(events, results[0], strict=True)
        ]

    def _confirm(self) -> Steps[None]:
        """Wait until what was written is where the site wants it."""
        replicas = self.options["wait_replicas"]
        # An answer must come before the connection gives up waiting for one.
        patience = int(self._timeout * 500)
        try:
            if self.options["wait_aof"]:
                ((local, reached),) = yield [("WAITAOF", 1, replicas, patience)]
                wanted, is_there = (
                    f"the disks of the master and {replicas} replicas",
                    local >= 1 and reached >= replicas,
                )
            else:
                (reached,) = yield [("WAIT", replicas, patience)]
                wanted, is_there = f"{replicas} replicas", reached >= replicas
        except exceptions.ResponseError as error:
            raise self._unavailable(
                "published, but not confirmed (with a key, publishing again is safe)", error
            ) from error
        if not is_there:
            raise BackendUnavailable(
                f"published, but not confirmed by {wanted} within {patience / 1000:g} s: Redis at {self._where()} "
                f"has it on {reached} replicas (with a key, publishing again is safe)."
            )

    # Reading

    def head(self) -> Cursor:
        """The cursor of the newest event."""
        return self._run_steps(self._head_steps, "the log cannot be read")

    def read(self, channels: Collection[str], after: int, limit: int) -> ReadResult:
        """Up to `limit` events above `after`, fewer where they are large, with floors and head, all of one moment."""
        return self._run_steps(lambda: self._read_steps(channels, after, limit), "the log cannot be read")

    def latest(self, channels: Collection[str]) -> dict[str, StoredEvent]:
        """The newest kept event of each channel that has one."""
        return self._run_steps(lambda: self._latest_steps(channels), "the log cannot be read")

    def newest(self, channels: Collection[str], limit: int) -> list[StoredEvent]:
        """The newest kept events of the channels, fewer where they are large."""
        if limit < 1:
            return []
        return self._run_steps(lambda: self._newest_steps(channels, limit), "the log cannot be read")

    def channels(self) -> list[str]:
        """The names of the channels that have events in their history, in order."""
        return self._run_steps(self._channels_steps, "the log cannot be read")

    async def ahead(self) -> Cursor:
        """`head` without blocking the loop."""
        return await self._aexecute(self._head_steps, "the log cannot be read")

    async def aread(self, channels: Collection[str], after: int, limit: int) -> ReadResult:
        """`read` without blocking the loop."""
        return await self._aexecute(lambda: self._read_steps(channels, after, limit), "the log cannot be read")

    async def alatest(self, channels: Collection[str]) -> dict[str, StoredEvent]:
        """`latest` without blocking the loop."""
        return await self._aexecute(lambda: self._latest_steps(channels), "the log cannot be read")

    def _head_steps(self) -> Steps[Cursor]:
        epoch, head = yield from self._call(scripts.HEAD)
        return Cursor(epoch, head)

    def _read_steps(self, channels: Collection[str], after: int, limit: int) -> Steps[ReadResult]:
        names = sorted(channels)
        reply = yield from self._call(scripts.READ, [self._history + name for name in names], (after, limit, *names))
        epoch, head, more, floors, entries = reply
        return ReadResult(
            events=_stored(entries),
            floors={name: int(floor) for name, floor in zip(names, floors, strict=True) if floor and floor != b"0"},
            head=Cursor(epoch, head),
            more=bool(more),
        )

    def _latest_steps(self, channels: Collection[str]) -> Steps[dict[str, StoredEvent]]:
        reply = yield from self._call(scripts.LATEST, [self._history + name for name in channels])
        return {event.channel: event for event in _stored(reply[2])}

    def _newest_steps(self, channels: Collection[str], limit: int) -> Steps[list[StoredEvent]]:
        reply = yield from self._call(scripts.NEWEST, [self._history + name for name in set(channels)], (limit,))
        return _stored(reply[2])[::-1]

    def _channels_steps(self) -> Steps[list[str]]:
        (found,) = yield [("HKEYS", self._floors)]
        names = sorted(name.decode() for name in found)
        kept = []
        for start in range(0, len(names), CHANNELS_AT_ONCE):
            part = names[start : start + CHANNELS_AT_ONCE]
            reply = yield from self._call(scripts.LENGTHS, [self._history + name for name in part])
            kept += [name for name, length in zip(part, reply[2], strict=True) if length]
        return kept

    async def tail(self) -> AsyncGenerator[Batch, None]:
        """The log from now on, on a connection of its own."""
        self._pool()
        pool = self._pools.setdefault(asyncio.get_running_loop(), _Pool())
        pool.followers += 1
        relay = None
        if self._outbox is not None:
            relay = Relay(self._outbox, self._append)
            relay.start()
        cursor: Cursor | None = None
        own: Any = None
        outage = Outage(logger, self.label)
        try:
            while True:
                try:
                    # The first look on a connection does not wait: it says that the log can be read.
                    is_first = own is None
                    if is_first:
                        own = await self._aconnect()
                    batch = await self._adrive(own, self._tail_steps(cursor, wait=not is_first))
                except Exception as error:  # noqa: BLE001 - whatever it is, it is said and tried again
                    if own is not None:
                        await own.disconnect(nowait=True)
                        own = None
                    self._address = None
                    wait = outage.goes_on(error, is_expected=isinstance(error, exceptions.RedisError))
                    await asyncio.sleep(wait * random.uniform(0.5, 1))  # noqa: S311 - spreads load
                    continue
                outage.is_over()
                if batch is not None:
                    cursor = batch.head
                    yield batch
        finally:
            if relay is not None:
                relay.stop()
            pool.followers -= 1
            if not pool.followers:
                self._pools.pop(asyncio.get_running_loop(), None)
                await pool.close()
            if own is not None:
                await own.disconnect(nowait=True)

    def _tail_steps(self, cursor: Cursor | None, *, wait: bool) -> Steps[Batch | None]:
        """What is new after `cursor`; waits for it for up to `BLOCK` seconds."""
        after = 0 if cursor is None else cursor.position
        patience = int(min(BLOCK, self._timeout / 2) * 1000)
        # Only to be woken: the script that follows reads events, head and epoch of one moment.
        wake = ("XREAD", "COUNT", 1, "BLOCK", patience, "STREAMS", self._log, f"{after}-0")
        limit = 0 if cursor is None else TAIL_LIMIT
        replies = yield from self._call_after([wake] if wait else [], scripts.READ, [self._log], (after, limit))
        epoch, head, more, _, entries = replies[-1]
        if cursor is None or epoch != cursor.epoch:
            return Batch(events=(), head=Cursor(epoch, head))
        if more:
            head = int(entries[-1][0].split(b"-")[0])
        if head > after:
            return Batch(events=_stored(entries), head=Cursor(epoch, head))
        if len(replies) > 1 and replies[0]:
            # Nothing of ours lies there, and it would wake us for ever.
            ids = [entry[0] for entry in replies[0][0][1]]
            logger.warning("removing from the log what this app did not write: backend=%s ids=%s", self.alias, ids)
            yield [("XDEL", self._log, *ids)]
        return None

    # Trimming

    def trim(self, retention: Callable[[str], Retention]) -> int:
        """Remove what is not kept, at most 500 events in one call of Redis."""
        failed = "trimming stopped"
        names = self._run_steps(self._channels_steps, failed)
        return sum(self._trim_channel(name, retention(name), failed) for name in names)

    def clear(self, channels: Collection[str]) -> int:
        """Remove all events of the channels."""
        return sum(self._trim_channel(name, Retention(events=0), "clearing stopped") for name in channels)

    def _trim_channel(self, channel: str, keep: Retention, failed: str) -> int:
        count = -1 if keep.events is None else keep.events
        oldest = "" if keep.seconds is None else time.time() - keep.seconds

        def steps() -> Steps[int]:
            _, _, removed = yield from self._call(scripts.TRIM, [self._history + channel], (count, oldest))
            return int(removed)

        total = 0
        while removed := self._run_steps(steps, failed):
            total += removed
        return total

    def maintain(self, retention: Callable[[str], Retention]) -> None:
        """As every such log; after a fork with a lock of this process's own."""
        self._check_process()
        super().maintain(retention)

    def _claim_trim(self, interval: float) -> bool:
        return self._run_steps(lambda: self._claim_steps(interval), "trimming stopped")

    def _claim_steps(self, interval: float) -> Steps[bool]:
        (claimed,) = yield [("SET", self._claim, os.getpid(), "NX", "PX", max(1, int(interval * 500)))]
        return claimed is not None

    # Configuration

    def check(self, databases: Collection[str] | None = None) -> list[checks.CheckMessage]:
        """
        What the server says, where `databases` lets us connect.

        E006: it is too old. W004: it may drop the log. W005: it does not answer.
        """
        if not databases:
            return []
        name = f"EVENTS['BACKENDS'][{self.alias!r}]"
        try:
            made, server = self._connect(self._ask_server())
            made.disconnect()
        except exceptions.RedisError as error:
            return [
                checks.Warning(
                    f"{name}: Redis at {self._where()} cannot be asked what it is: {error}",
                    hint="Publishing raises BackendUnavailable, and streams wait, until it answers.",
                    id="events.W005",
                )
            ]
        messages: list[checks.CheckMessage] = []
        needed = VERSION_WITH_WAITAOF if self.options["wait_aof"] else OLDEST_VERSION
        if (0,) < server.version < needed:
            reason = "WAITAOF, which the option wait_aof needs," if self.options["wait_aof"] else "What the log needs"
            messages.append(
                checks.Error(
                    f"{name}: Redis at {self._where()} is {_dotted(server.version)}, too old. "
                    f"{reason} came with {_dotted(needed)}.",
                    hint="Take a newer Redis, or Valkey.",
                    id="events.E006",
                )
            )
        if server.eviction.startswith("allkeys-"):
            messages.append(
                checks.Warning(
                    f"{name}: Redis at {self._where()} has the maxmemory-policy {server.eviction}: "
                    "it may drop the log when its memory is full.",
                    hint="Set maxmemory-policy to noeviction, or to one that begins with volatile-.",
                    id="events.W004",
                )
            )
        return messages

    @property
    def label(self) -> str:
        """How log lines name the log."""
        return f"backend={self.alias}"

    def log_identity(self) -> str:
        """The server or service, the number of its database, and the prefix."""
        where = self.options["service"] or self._where()
        return f"Redis at {where}, database {self._connection_options.get('db', 0)}, prefix {self.options['prefix']!r}"

    def close(self) -> None:
        """Close the connections that nobody is using. Tails keep theirs: they end with whoever reads them."""
        idle, self._idle = self._idle, []
        for each in idle:
            each.disconnect()
        for loop, pool in list(self._pools.items()):
            # A loop that was closed has nothing left to close.
            with suppress(RuntimeError):
                loop.call_soon_threadsafe(pool.let_go)


class _Pool:
    """The connections that one event loop reads with: kept while somebody follows the log on it."""

    def __init__(self) -> None:
        self.idle: list[Any] = []
        self.room = asyncio.Semaphore(MAX_READING)
        self.followers = 0
        self._closing: asyncio.Task[None] | None = None

    async def keep(self, borrowed: Any) -> None:
        """Take a connection back."""
        if self.followers:
            self.idle.append(borrowed)
        else:
            await borrowed.disconnect(nowait=True)

    async def close(self) -> None:
        """Close what is idle."""
        while self.idle:
            await self.idle.pop().disconnect(nowait=True)

    def let_go(self) -> None:
        """`close`, as a callback of the loop."""
        self._closing = asyncio.get_running_loop().create_task(self.close())


def _drive(borrowed: Any, steps: Steps[T]) -> T:
    """Run the steps on a blocking connection. Raises what redis-py raises, unless they handle it."""
    try:
        commands = next(steps)
        while True:
            borrowed.send_packed_command(_packed(borrowed, commands))
            replies, failed = [], None
            for _ in commands:
                try:
                    replies.append(borrowed.read_response())
                except exceptions.ResponseError as error:
                    # The other replies are on their way all the same.
                    failed = failed or error
            commands = steps.throw(failed) if failed else steps.send(replies)
    except StopIteration as done:
        return done.value  # type: ignore[no-any-return]


def _packed(borrowed: Any, commands: list[tuple[Any, ...]]) -> Any:
    return borrowed.pack_command(*commands[0]) if len(commands) == 1 else borrowed.pack_commands(commands)


def _bulk(*parts: str) -> bytes:
    """The parts of a command as the protocol writes them."""
    return b"".join(b"$%d\r\n%b\r\n" % (len(part.encode()), part.encode()) for part in parts)


def _header(event: NewEvent, now: float) -> str:
    return f"{now:.6f} {event.is_json:d} {event.channel} {event.type}"


def _open(kind: Any, options: Mapping[str, Any], steps: Steps[T]) -> tuple[Any, T]:
    made = kind(**options)
    try:
        made.connect()
        return made, _drive(made, steps)
    except BaseException:
        made.disconnect()
        raise


def _is_answer(error: BaseException) -> bool:
    """Whether Redis answered: the connection is as good as before."""
    return isinstance(error, (exceptions.ResponseError, EventsError)) and not _is_elsewhere(error)


def _is_elsewhere(error: BaseException) -> bool:
    """Whether a server says that it is not, or no longer, the one to ask. It has done nothing."""
    if isinstance(error, (exceptions.ReadOnlyError, exceptions.MovedError)):
        return True
    # redis-py 5 has no class for it outside of its client for clusters.
    return isinstance(error, exceptions.ResponseError) and str(error).startswith("MOVED ")


def _dotted(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))


def _stored(entries: Sequence[Any]) -> list[StoredEvent]:
    """The events of a stream's entries, without what this app did not write."""
    found = []
    for entry in entries:
        try:
            position, (_, header, _, data) = entry
            created_at, is_json, channel, kind = header.decode().split(" ", 3)
            found.append(
                StoredEvent(
                    position=int(position.removesuffix(b"-0")),
                    channel=channel,
                    type=kind,
                    data=data.decode(),
                    is_json=is_json == "1",
                    created_at=float(created_at),
                )
            )
        except ValueError:
            continue
    return found

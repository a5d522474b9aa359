"""
The hub: one per process, event loop and log. It follows the log once, encodes each event once and feeds every stream.

A stream is a cursor. It holds the position it has written up to, and asks for what follows: from the feeds' rings while
they reach back far enough, from the log where they do not. Replay and live are the same loop.

Everything here runs on the hub's own event loop, except `recheck_streams`.
"""

from __future__ import annotations

import asyncio
import json
import logging
import random
import threading
import time
from collections import deque
from contextlib import aclosing, suppress
from typing import TYPE_CHECKING, Any

from . import signals, wire
from .backends.base import CONTROL_CHANNEL
from .channels import channel_table, retention_of
from .conf import settings
from .exceptions import BackendUnavailable
from .models import Channel
from .registry import event_backends
from .wire import Cursor

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence

    from .backends.base import BaseEventBackend, Batch, StoredEvent

logger = logging.getLogger("events.hub")

#: Seconds for which a hub without streams goes on following the log: a page that is reloaded finds its ring.
LINGER = 10.0
#: Events that a stream behind its ring reads from the log at once.
READ_LIMIT = 200
#: Bytes that leave in one write. A larger write only waits in the server's buffer.
MAX_CHUNK = 65_536
#: Writes after which a stream that always finds more lets others run.
WRITES_PER_TURN = 16
#: Seconds between two looks whether the log wants trimming, where nobody publishes in this process.
MAINTAIN = 30.0
#: Where a stream begins that wants all that is kept: below every position, and nothing that was trimmed is missed.
OLDEST = -1
#: Seconds for which the first bytes wait for a log that has not said yet where its head is.
FIRST_BYTES_WAIT = 1.0
#: Seconds until a stream asks again for a log that could not be read.
UNAVAILABLE_RETRY = 1.0

# Messages from process to process (`events.control`).

#: A channel was changed.
OUTDATED = "channels-changed"
#: The history of channels was removed: rings forget it too.
CLEARED = "history-cleared"
#: Rights were changed: streams ask again.
RECHECK = "recheck"
#: Streams end, and their clients come back.
DRAIN = "drain"


class Frame:
    """One event as bytes, encoded when first wanted, for all streams of the process."""

    __slots__ = ("_envelope", "_plain", "epoch", "event")

    def __init__(self, event: StoredEvent, epoch: str) -> None:
        self.event = event
        self.epoch = epoch
        self._plain: bytes | None = None
        self._envelope: bytes | None = None

    @property
    def position(self) -> int:
        """The event's position in the log."""
        return self.event.position

    def encoded(self, envelope: bool) -> bytes:
        """The bytes of the event, plain or with its channel and type inside its data."""
        event = self.event
        if envelope:
            if self._envelope is None:
                self._envelope = wire.encode_envelope(
                    event.data,
                    is_json=event.is_json,
                    channel=event.channel,
                    event=event.type,
                    id=f"{self.epoch}-{event.position}",
                )
            return self._envelope
        if self._plain is None:
            self._plain = wire.encode(event.data, event=event.type, id=f"{self.epoch}-{event.position}")
        return self._plain


class Feed:
    """A channel's part of the hub: the ring of its newest frames, complete above `since`, and who follows it."""

    __slots__ = ("name", "ring", "since", "size", "streams")

    def __init__(self, name: str, since: int) -> None:
        self.name = name
        self.since = since
        self.ring: deque[Frame] = deque()
        self.size = 0
        self.streams: set[Stream] = set()

    def push(self, frame: Frame, max_events: int, max_bytes: int) -> None:
        """Add the newest frame; the oldest ones leave where the ring is full."""
        self.ring.append(frame)
        self.size += len(frame.event.data)
        while len(self.ring) > max_events or (self.size > max_bytes and len(self.ring) > 1):
            oldest = self.ring.popleft()
            self.size -= len(oldest.event.data)
            self.since = oldest.position

    def restart(self, since: int) -> None:
        """Forget the ring: it is complete only above `since`."""
        self.ring.clear()
        self.size = 0
        self.since = since

    def newer(self, position: int) -> list[Frame]:
        """The frames above `position`, newest first."""
        found = []
        for frame in reversed(self.ring):
            if frame.position <= position:
                break
            found.append(frame)
        return found


class Hub:
    """Follows one log on one event loop. Get it with `get_hub`."""

    def __init__(self, backend: BaseEventBackend) -> None:
        self.backend = backend
        self.feeds: dict[str, Feed] = {}
        self.streams: set[Stream] = set()
        #: Up to where the rings know the log, once that has answered for the first time (`wait_started`).
        self.head = Cursor("", 0)
        #: The head before the newest batch: where a stream that is up to date stands when it is woken.
        self._previous = -1
        #: What those streams write, by their channels and form: most streams want the same bytes.
        self._chunks: dict[tuple[tuple[Feed, ...], bool], bytes] = {}
        self._started = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._is_told = False
        self._maintain_at = time.monotonic() + MAINTAIN * random.random()  # noqa: S311 - spreads load
        self._max_events = settings.RING_EVENTS
        self._max_bytes = settings.RING_BYTES

    # Following the log

    def start(self) -> None:
        """Follow the log, unless that is under way. Ends by itself where no stream comes."""
        if self._task is None:
            loop = asyncio.get_running_loop()
            self._task = loop.create_task(self._run(), name="events-hub")
            loop.call_later(LINGER, self._stop_if_idle)

    def now(self) -> Cursor | None:
        """The present, for a stream that begins; None where the log has not said yet where it is."""
        return self.head if self._started.is_set() else None

    def attach(self, stream: Stream) -> None:
        """Let `stream` take part. From now on its channels' rings collect what comes."""
        self.start()
        self.streams.add(stream)
        opened = []
        feeds = []
        for name in stream.channels:
            feed = self.feeds.get(name)
            if feed is None:
                feed = self.feeds[name] = Feed(name, self.head.position)
            if not feed.streams:
                opened.append(name)
            feed.streams.add(stream)
            feeds.append(feed)
        stream.feeds = tuple(feeds)
        for name in opened:
            signals.feed_opened.send(sender=type(self), channel=name)

    def detach(self, stream: Stream) -> None:
        """Let `stream` go."""
        self.streams.discard(stream)
        for feed in stream.feeds:
            feed.streams.discard(stream)
            if not feed.streams:
                asyncio.get_running_loop().call_later(LINGER, self._drop_idle, feed)
                signals.feed_closed.send(sender=type(self), channel=feed.name)
        stream.feeds = ()

    def _drop_idle(self, feed: Feed) -> None:
        """Forget a feed that nobody came back to; after the last one, stop following the log."""
        if not feed.streams and self.feeds.get(feed.name) is feed:
            del self.feeds[feed.name]
        self._stop_if_idle()

    def _stop_if_idle(self) -> None:
        if not self.feeds and self._task is not None:
            # First of all, so that nobody joins a hub that is about to stop.
            _forget(self)
            self._task.cancel()

    async def wait_started(self, timeout: float | None = None) -> None:
        """Wait until the log has said where its head is, or the hub has stopped, or so many seconds have passed."""
        if not self._started.is_set():
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._started.wait(), timeout)

    async def _run(self) -> None:
        try:
            async with aclosing(self.backend.tail()) as batches:
                async for batch in batches:
                    self._deliver(batch)
        except Exception:
            # A fault of ours: the streams end, and their clients come back to a new hub.
            logger.exception("the hub stopped: backend=%s", self.backend.alias)
        finally:
            if self._is_told:
                channel_table.unlisten()
            _forget(self)
            self._task = None
            self._started.set()
            for stream in tuple(self.streams):
                stream.end()

    def _deliver(self, batch: Batch) -> None:
        before, self.head = self.head, batch.head
        self._chunks.clear()
        woken: set[Stream] = set()
        if before.epoch != batch.head.epoch:
            for feed in self.feeds.values():
                feed.restart(batch.head.position)
            if self._started.is_set():
                woken = self.streams
                for stream in woken:
                    stream.reset_all("epoch")
                # What another life of the log told of the channels, nobody has heard.
                signals.channels_changed.send(sender=Channel)
            elif self.backend.crosses_processes:
                self._is_told = True
                channel_table.listen()
            self._started.set()
        elif batch.head.position - before.position != len(batch.events):
            # Something was trimmed before we read it. The streams ask the log, which knows what is missing.
            for feed in self.feeds.values():
                feed.restart(batch.head.position)
            woken = self.streams
            # It may have been a message.
            signals.channels_changed.send(sender=Channel)
        else:
            self._previous = before.position
            touched: set[Feed] = set()
            for event in batch.events:
                if (known := self.feeds.get(event.channel)) is not None:
                    known.push(Frame(event, batch.head.epoch), self._max_events, self._max_bytes)
                    touched.add(known)
                elif event.channel == CONTROL_CHANNEL:
                    self._obey(event)
            woken = woken.union(*(feed.streams for feed in touched))
        for stream in woken:
            stream.wake()
        if (now := time.monotonic()) > self._maintain_at:
            self._maintain_at = now + MAINTAIN
            self.backend.maintain(retention_of)

    def _obey(self, message: StoredEvent) -> None:
        """Do what another process, or this one, has asked for (`events.control`)."""
        if message.type == OUTDATED:
            signals.channels_changed.send(sender=Channel)
        elif message.type == CLEARED:
            for name in json.loads(message.data)["channels"]:
                if (feed := self.feeds.get(name)) is not None:
                    feed.restart(message.position)
        elif message.type == RECHECK:
            self.recheck()
        elif message.type == DRAIN:
            for stream in self.streams:
                stream.drain()

    def take(self, stream: Stream, head: Cursor) -> bytes:
        """What follows in the rings for `stream`, which moves on. Empty where its channels have nothing new."""
        key = (stream.feeds, stream.envelope)
        is_shared = stream.position == self._previous and stream.after is None
        if is_shared and (chunk := self._chunks.get(key)) is not None:
            stream.position = head.position
            return chunk
        frames = [frame for feed in stream.feeds for frame in feed.newer(stream.position)]
        if len(stream.feeds) > 1:
            frames.sort(key=lambda frame: -frame.position)
        parts = []
        size = 0
        stream.position = head.position
        while frames:
            frame = frames.pop()
            if stream.wants(frame.event):
                parts.append(frame.encoded(stream.envelope))
                size += len(parts[-1])
                if size >= MAX_CHUNK:
                    # The next write goes on where this one ends.
                    stream.position = frame.position
                    break
        chunk = parts[0] if len(parts) == 1 else b"".join(parts)
        if is_shared and not frames:
            self._chunks[key] = chunk
        stream.forget_after()
        return chunk

    def recheck(self) -> None:
        """Let every stream ask again whether its client may read."""
        for stream in self.streams:
            stream.ask_again()


class Stream:
    """
    One client's open response: a cursor in the log, and the bytes that follow it.

    `now` is where a stream without a cursor begins: the log's head when the response was made, before its headers left.
    `resume` is the cursor to go on from, as the client sent it. With `replay` it is not where the client stopped but
    the present of its page: what the channels replay to a new stream comes first.

    `allowed` is asked again whenever the configured channels change; when it says no, the client is told not to come
    back and the stream ends.
    """

    _timer: asyncio.TimerHandle

    __slots__ = (
        "__weakref__",
        "_allowed",
        "_asked",
        "_draining",
        "_ending",
        "_keepalive",
        "_keepalive_due",
        "_reset",
        "_timer",
        "_waiter",
        "_written_at",
        "after",
        "channels",
        "earliest",
        "envelope",
        "feeds",
        "hub",
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
        envelope: bool = False,
        allowed: Callable[[], Awaitable[bool]] | None = None,
    ) -> None:
        self.hub = hub
        self.channels = tuple(channels)
        self.now = now
        self.resume = resume
        self.replay = replay
        self.earliest = earliest
        self.envelope = envelope
        self.feeds: tuple[Feed, ...] = ()
        self.position = 0
        #: Channel to the position above which this stream wants its events; None where that is `position` for all.
        self.after: dict[str, int] | None = None
        self._allowed = allowed
        self._asked = self._draining = self._ending = self._keepalive_due = False
        self._reset: str | None = None
        self._waiter: asyncio.Future[None] | None = None
        # Each stream has its own rhythm, or 10,000 that got the same event would all write 15 s later.
        self._keepalive = settings.KEEPALIVE * random.uniform(0.8, 1.0)  # noqa: S311 - spreads load
        self._written_at = 0.0

    # What the hub calls

    def wake(self) -> None:
        """Let the stream look again, if it is waiting."""
        if (waiter := self._waiter) is not None:
            self._waiter = None
            if not waiter.done():
                waiter.set_result(None)

    def reset_all(self, reason: str) -> None:
        """Tell the client that events may be missing, and go on from the head."""
        self._reset = reason

    def ask_again(self) -> None:
        """Ask again whether the client may read."""
        self._asked = True
        self.wake()

    def end(self) -> None:
        """End the stream; its client comes back."""
        self._ending = True
        self.wake()

    def drain(self) -> None:
        """End the stream, and tell its client when to come back."""
        self._draining = True
        self.end()

    def wants(self, event: StoredEvent) -> bool:
        """Whether the event is above where this stream begins in its channel."""
        return self.after is None or event.position > self.after[event.channel]

    # The stream's own loop

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        """
        The bytes of the response, as they come.

        Never ends by itself but when rights are gone or the hub stops. Closing it takes the stream out of the hub.
        """
        loop = asyncio.get_running_loop()
        self.hub.attach(self)
        self._written_at = loop.time()
        self._timer = loop.call_later(self._keepalive, self._on_timer)
        try:
            if (head := self.now) is None:
                # "Now" is before the first bytes: who has seen those gets what is published from then on.
                await self.hub.wait_started(FIRST_BYTES_WAIT)
                head = self.hub.head
            yield wire.prelude(wire.random_retry(settings.RETRY))
            begun = asyncio.ensure_future(self._begin(head))
            try:
                while not begun.done():
                    self._waiter = waiter = loop.create_future()
                    await asyncio.wait((begun, waiter), return_when=asyncio.FIRST_COMPLETED)
                    if self._keepalive_due:
                        yield self._written(wire.KEEPALIVE)
            finally:
                begun.cancel()
            if first := begun.result():
                yield self._written(first)
            writes = 0
            while not self._ending:
                head = self.hub.head
                if self._asked:
                    self._asked = False
                    if reason := await self._refusal():
                        yield wire.control("stream-closed", {"reason": reason})
                        return
                    continue
                if self._reset is not None:
                    reason, self._reset = self._reset, None
                    chunk = self._start_over(reason, head)
                elif self.position >= head.position:
                    if not self._keepalive_due:
                        self._waiter = loop.create_future()
                        await self._waiter
                        continue
                    chunk = wire.KEEPALIVE
                elif self.position >= self._rings_since():
                    chunk = self.hub.take(self, head)
                else:
                    chunk = await self._read(head)
                if chunk:
                    yield self._written(chunk)
                    writes += 1
                    if writes % WRITES_PER_TURN == 0:
                        # A send that never waits would starve the loop, and never see that the client has gone.
                        await asyncio.sleep(0)
            if self._draining:
                yield wire.prelude(wire.random_retry(settings.RETRY))
        finally:
            self.hub.detach(self)
            self._timer.cancel()

    def _written(self, chunk: bytes) -> bytes:
        self._keepalive_due = False
        self._written_at = asyncio.get_running_loop().time()
        return chunk

    def _on_timer(self) -> None:
        loop = asyncio.get_running_loop()
        silent = loop.time() - self._written_at
        if silent >= self._keepalive:
            self._keepalive_due = True
            self.wake()
            silent = 0
        self._timer = loop.call_later(self._keepalive - silent, self._on_timer)

    def _rings_since(self) -> int:
        """The position above which the rings have everything."""
        feeds = self.feeds
        return feeds[0].since if len(feeds) == 1 else max(feed.since for feed in feeds)

    async def _refusal(self) -> str | None:
        """Why the client may not read any more, or None."""
        rows = [channel_table.find(name) for name in self.channels]
        if any(row is not None and not row.is_active for row in rows):
            return "switched-off"
        if self._allowed is not None and not await self._allowed():
            return "revoked"
        return None

    async def _begin(self, head: Cursor) -> bytes:
        """
        Find where the stream starts; `head` is where the log was before the first bytes, if it had said so.

        Returns the control event that says so, where something may be missing.
        """
        await self.hub.wait_started()
        if self._ending:
            return b""
        if head.epoch != self.hub.head.epoch:
            head = self.hub.head
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
        if self.replay:
            await self._begin_new(cursor.position)
        else:
            self.position = cursor.position
        return b""

    async def _begin_new(self, now: int) -> None:
        """
        A first connect: what each channel's `replay` says, or all that is kept where the client asked for that.

        `now` is the position that the client takes for the present: the head, or what its page was rendered at.
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
        if latest:
            found = await self._patiently(lambda: self.hub.backend.alatest(latest))
            for name, event in found.items():
                after[name] = min(event.position - 1, now)
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
        found = await self._patiently(lambda: self.hub.backend.aread(names, start, READ_LIMIT))
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
        for event in found.events:
            if event.position > head.position:
                break
            if self.wants(event):
                parts.append(Frame(event, head.epoch).encoded(self.envelope))
                size += len(parts[-1])
                if size >= MAX_CHUNK:
                    self.position = event.position
                    break
        self.forget_after()
        return b"".join(parts)

    def forget_after(self) -> None:
        """Once past where every channel is wanted from, the position says it all."""
        if self.after is not None and self.position >= max(self.after.values()):
            self.after = None

    async def _patiently(self, ask: Callable[[], Awaitable[Any]]) -> Any:
        """What the log answers, however long it cannot be reached: the stream stays open meanwhile."""
        while True:
            try:
                return await ask()
            except BackendUnavailable as error:
                logger.warning("a stream waits for the log: %s", error)
                await asyncio.sleep(UNAVAILABLE_RETRY)


_hubs: dict[asyncio.AbstractEventLoop, dict[str, Hub]] = {}
_hubs_lock = threading.Lock()


def get_hub(using: str = "default") -> Hub:
    """The hub of the running event loop for the log `using`."""
    loop = asyncio.get_running_loop()
    backend = event_backends[using]
    with _hubs_lock:
        hubs = _hubs.get(loop)
        if hubs is None:
            # Nothing bound to a loop outlives it.
            for other in [other for other in _hubs if other.is_closed()]:
                del _hubs[other]
            hubs = _hubs[loop] = {}
        hub = hubs.get(using)
        if hub is None or hub.backend is not backend:
            hub = hubs[using] = Hub(backend)
        return hub


def _forget(hub: Hub) -> None:
    with _hubs_lock:
        for loop, hubs in list(_hubs.items()):
            for alias in [alias for alias, known in hubs.items() if known is hub]:
                del hubs[alias]
            if not hubs:
                del _hubs[loop]


def recheck_streams(**kwargs: Any) -> None:
    """Let every stream of this process ask again whether its client may read. Callable from any thread."""
    with _hubs_lock:
        hubs = [(loop, hub) for loop, found in _hubs.items() for hub in found.values()]
    for loop, hub in hubs:
        # A loop that was closed took its streams with it.
        with suppress(RuntimeError):
            loop.call_soon_threadsafe(hub.recheck)


signals.channels_refreshed.connect(recheck_streams, dispatch_uid="events.hub")

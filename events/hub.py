"""
The hub: one per process, event loop and log. It follows the log once, encodes each event once and feeds every stream.

Everything here runs on the hub's own event loop, except what says that it does not.
"""

from __future__ import annotations

import asyncio
import contextvars
import json
import logging
import random
import threading
import time
from contextlib import aclosing, suppress
from typing import TYPE_CHECKING, Any, TypeVar

from . import limits, signals
from .backends.base import CONTROL_CHANNEL
from .channels import channel_table, retention_of
from .conf import settings
from .feeds import Audience, Feed, Form, Frame
from .models import Channel
from .registry import event_backends
from .rights import Rights, pass_moment
from .wire import Cursor

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterable

    from .backends.base import BaseEventBackend, Batch, StoredEvent
    from .feeds import Follower

T = TypeVar("T")

logger = logging.getLogger("events.hub")

#: Seconds for which a hub without streams goes on following the log: a page that is reloaded finds its ring.
LINGER = 10.0
#: Channels whose ring waits so. Names under a prefix are for clients to choose: what they leave behind is bounded.
MAX_LINGERING = 1000
#: Streams that are given an event before others may run: the rest of the site, and the writes of these.
STREAMS_PER_TURN = 250
#: Seconds between two looks whether the log wants trimming, where nobody publishes in this process.
MAINTAIN = 30.0
#: Seconds for which a stream that drains may wait for its client to take the last bytes.
DRAIN_PATIENCE = 1.0
#: Streams are looked after in turns, in so many groups, so that 10,000 keep-alives are not one burst.
ROUNDS = 32
#: A stream is looked at this often within one `KEEPALIVE`, or a shorter limit.
LOOKS = 5

# Messages from process to process (`events.control`).

#: A channel was changed.
OUTDATED = "channels-changed"
#: The history of channels was removed: rings forget it too.
CLEARED = "history-cleared"
#: Rights may have changed: of users, of channels, or all.
RECHECK = "recheck"
#: A user's streams end.
DISCONNECT = "disconnect"
#: Streams end, and their clients come back.
DRAIN = "drain"


class Hub:
    """Follows one log on one event loop. Get it with `get_hub`."""

    def __init__(self, backend: BaseEventBackend) -> None:
        self.backend = backend
        self.feeds: dict[str, Feed] = {}
        self.audiences: dict[tuple[tuple[str, ...], Form], Audience] = {}
        self.streams: set[Follower] = set()
        self._lingering = 0
        #: Up to where the rings know the log, once that has answered for the first time (`wait_started`).
        self.head = Cursor("", 0)
        #: The loop's time, of this turn.
        self.clock = 0.0
        self.keepalive = settings.KEEPALIVE
        self.retry = settings.RETRY
        self.slow_client_timeout = settings.SLOW_CLIENT_TIMEOUT
        self.max_streams = settings.MAX_STREAMS
        self.max_streams_per_user = settings.MAX_STREAMS_PER_USER
        self.max_streams_per_address = settings.MAX_STREAMS_PER_ADDRESS
        self.max_stream_age = settings.MAX_STREAM_AGE
        self.drain_spread = settings.DRAIN_SPREAD
        self._max_events = settings.RING_EVENTS
        self._max_bytes = settings.RING_BYTES
        #: What the hub does belongs to no request, and must not inherit one's thread.
        self._context = contextvars.Context()
        self.rights = Rights(self._context)
        self._started = asyncio.Event()
        self._emptied = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._is_told = False
        self._maintain_at = time.monotonic() + MAINTAIN * random.random()  # noqa: S311 - spreads load
        period = min(self.keepalive, self.slow_client_timeout, self.max_stream_age or self.keepalive) / LOOKS
        # However short the keep-alive, a loop is not kept busy with looking.
        self._rounds: list[set[Follower]] = [set() for _ in range(max(1, min(ROUNDS, int(period / 0.01))))]
        self._pause = max(0.01, period / len(self._rounds))
        #: After how many seconds of silence a stream of each round writes a keep-alive: all in the last fifth.
        spare = max(0.0, self.keepalive / LOOKS - period)
        last = self.keepalive - period
        self.silence = [last - spare * number / len(self._rounds) for number in range(len(self._rounds))]
        self._round = 0
        self._timer: asyncio.TimerHandle | None = None

    # Following the log

    def start(self) -> None:
        """Follow the log, unless that is under way. Ends by itself where no stream comes."""
        if self._task is None:
            loop = asyncio.get_running_loop()
            # Where it was before says nothing of where the log is now.
            self._started.clear()
            self._task = self.create_task(self._run())
            # Not at the end of the coroutine, which never begins where it is cancelled first. A copy of the context:
            # what runs in it cannot run something else in the very same.
            self._task.add_done_callback(self._ended, context=self._context.copy())
            loop.call_later(LINGER, self._stop_if_idle)

    def create_task(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """
        Let `work` run for the hub or one of its streams.

        Whoever wakes a stream may be in the middle of a request. A task that inherited its context would take what is
        not async to the thread of a request that is over by then.
        """
        return self._context.run(asyncio.get_running_loop().create_task, work)

    def now(self) -> Cursor | None:
        """The present, for a stream that begins; None where the log has not said yet where it is."""
        return self.head if self._started.is_set() else None

    def attach(self, stream: Follower) -> None:
        """Let `stream` take part. From now on its channels' rings collect what comes."""
        self.start()
        loop = asyncio.get_running_loop()
        self.clock = loop.time()
        self.streams.add(stream)
        self._emptied.clear()
        key = (stream.channels, stream.form)
        audience = self.audiences.get(key)
        opened: list[str] = []
        if audience is None:
            feeds = tuple(self._feed(name, opened) for name in stream.channels)
            audience = self.audiences[key] = Audience(feeds, stream.form, self.head.position)
            for feed in feeds:
                feed.audiences.add(audience)
        audience.streams.add(stream)
        stream.audience = audience
        # One copy of the names for all.
        stream.channels = audience.channels
        # A place at random: what makes streams begin together shall not make them write together.
        stream.round = random.randrange(len(self._rounds))  # noqa: S311 - spreads load
        self._rounds[stream.round].add(stream)
        if self._timer is None:
            self._timer = loop.call_later(self._pause, self._look)
        for name in opened:
            signals.feed_opened.send(sender=type(self), channel=name)

    def _feed(self, name: str, opened: list[str]) -> Feed:
        feed = self.feeds.get(name)
        if feed is None:
            feed = self.feeds[name] = Feed(name, self.head.position)
        if not feed.audiences:
            opened.append(name)
        return feed

    def detach(self, stream: Follower) -> None:
        """Let `stream` go."""
        audience = stream.audience
        if audience is None:
            return
        stream.audience = None
        self.streams.discard(stream)
        self._rounds[stream.round].discard(stream)
        audience.streams.discard(stream)
        if not audience.streams:
            del self.audiences[stream.channels, stream.form]
            for feed in audience.feeds:
                feed.audiences.discard(audience)
                if not feed.audiences:
                    if not feed.lingers:
                        self._let_linger(feed)
                    signals.feed_closed.send(sender=type(self), channel=feed.name)
        if not self.streams:
            self._emptied.set()

    def _let_linger(self, feed: Feed) -> None:
        """Keep a feed that nobody follows any more for a while, unless there are many such."""
        if self._lingering < MAX_LINGERING:
            self._lingering += 1
            feed.lingers = True
            asyncio.get_running_loop().call_later(LINGER, self._drop_idle, feed)
        else:
            del self.feeds[feed.name]

    def _drop_idle(self, feed: Feed) -> None:
        """Forget a feed that nobody came back to; after the last one, stop following the log."""
        self._lingering -= 1
        feed.lingers = False
        if not feed.audiences and self.feeds.get(feed.name) is feed:
            del self.feeds[feed.name]
        self._stop_if_idle()

    def _stop_if_idle(self) -> None:
        if not self.feeds:
            self.stop()

    def stop(self) -> None:
        """Follow the log no more. Streams that are left end."""
        if self._task is not None:
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
                    await self._deliver(batch)
        except Exception:
            # A fault of ours: the streams end, and their clients come back to a new hub.
            logger.exception("the hub stopped: backend=%s", self.backend.alias)

    def _ended(self, task: asyncio.Task[None]) -> None:
        """The hub follows the log no more, for whatever reason."""
        if self._is_told:
            self._is_told = False
            channel_table.unlisten()
        _forget(self)
        self._task = None
        self._started.set()
        self.rights.close()
        for stream in tuple(self.streams):
            stream.end()

    async def _deliver(self, batch: Batch) -> None:
        before, self.head = self.head, batch.head
        if before.epoch != batch.head.epoch or not self._started.is_set():
            self._restart_rings()
            if self._started.is_set():
                for stream in tuple(self.streams):
                    stream.reset_all("epoch")
                # What another life of the log told of the channels, nobody has heard.
                signals.channels_changed.send(sender=Channel)
            elif self.backend.crosses_processes:
                self._is_told = True
                channel_table.listen()
            # What was told of rights before, nobody here has heard.
            self.rights.ask()
            self._started.set()
        elif batch.head.position - before.position != len(batch.events):
            # Something was trimmed before we read it. The streams ask the log, which knows what is missing.
            self._restart_rings()
            for stream in tuple(self.streams):
                stream.wake()
            # It may have been a message.
            signals.channels_changed.send(sender=Channel)
            self.rights.ask()
        else:
            await self._hand_out(self._take_in(batch))
        if (now := time.monotonic()) > self._maintain_at:
            self._maintain_at = now + MAINTAIN
            self.backend.maintain(retention_of)

    def _restart_rings(self) -> None:
        for feed in self.feeds.values():
            feed.restart(self.head.position)
        for audience in self.audiences.values():
            audience.restart(self.head.position)

    def _take_in(self, batch: Batch) -> set[Audience]:
        """Put what came into the rings. Returns the audiences that it is for."""
        frames: list[Frame] = []
        touched: set[Audience] = set()
        for event in batch.events:
            if (feed := self.feeds.get(event.channel)) is not None:
                frame = Frame(event, batch.head.epoch)
                was_full = feed.is_full
                feed.push(frame, self._max_events, self._max_bytes)
                if feed.is_full and not was_full:
                    limits.reached(limits.RING, [feed.name], level=logging.DEBUG)
                frames.append(frame)
                touched |= feed.audiences
            elif event.channel == CONTROL_CHANNEL:
                self._obey(event)
        for audience in touched:
            audience.give([frame for frame in frames if frame.event.channel in audience.names])
        return touched

    async def _hand_out(self, audiences: Iterable[Audience]) -> None:
        """Let the streams write what their audiences were given."""
        self.clock = asyncio.get_running_loop().time()
        given = 0
        for audience in audiences:
            for stream in tuple(audience.streams):
                stream.deliver()
                given += 1
                if given % STREAMS_PER_TURN == 0:
                    await asyncio.sleep(0)
                    self.clock = asyncio.get_running_loop().time()

    def _obey(self, message: StoredEvent) -> None:
        """Do what another process, or this one, has asked for (`events.control`)."""
        if message.type == OUTDATED:
            signals.channels_changed.send(sender=Channel)
            # Now, and not when the copy has been read anew: what follows may be for others by then.
            self.rights.ask()
        elif message.type == CLEARED:
            for name in json.loads(message.data)["channels"]:
                if (feed := self.feeds.get(name)) is not None:
                    feed.restart(message.position)
        elif message.type == RECHECK:
            said = json.loads(message.data)
            self.rights.ask(said.get("users"), said.get("channels"), said.get("session"))
        elif message.type == DISCONNECT:
            self.rights.disconnect(json.loads(message.data)["user"])
        elif message.type == DRAIN:
            self.drain()

    # Looking after the streams

    def _look(self) -> None:
        """Look after the streams of one round: who was silent too long, whose client takes nothing, who is too old."""
        loop = asyncio.get_running_loop()
        if not self.streams:
            self._timer = None
            return
        self._timer = loop.call_later(self._pause, self._look)
        self._round = (self._round + 1) % len(self._rounds)
        self.clock = loop.time()
        for stream in tuple(self._rounds[self._round]):
            stream.look(self.clock)

    def drain(self) -> None:
        """End every stream, each with a time of its own to come back. Clients that take nothing are not waited for."""
        draining = tuple(self.streams)
        for stream in draining:
            stream.drain()
        asyncio.get_running_loop().call_later(DRAIN_PATIENCE, _give_up, draining)

    async def wait_empty(self, timeout: float) -> None:
        """Wait until no stream is left, or so many seconds have passed."""
        if self.streams:
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._emptied.wait(), timeout)


def _give_up(streams: Iterable[Follower]) -> None:
    for stream in streams:
        if stream.audience is not None:
            stream.give_up()


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


def hubs() -> list[tuple[asyncio.AbstractEventLoop, Hub]]:
    """
    The hubs of this process, each with its loop. Callable from any thread, and from a signal's handler.

    Without the lock, which the thread that a signal interrupts may hold: a copy of a dictionary is made in one step.
    """
    return [(loop, hub) for loop, found in tuple(_hubs.items()) for hub in tuple(found.values())]


def on_every_hub(do: Callable[[Hub], object]) -> None:
    """Let `do` run on the loop of every hub. Callable from where `hubs` is."""
    for loop, hub in hubs():
        # A loop that was closed took its streams with it.
        with suppress(RuntimeError):
            loop.call_soon_threadsafe(do, hub)


def recheck_streams(**kwargs: Any) -> None:
    """Let every stream of this process ask again whether its client may read. Callable from any thread."""
    # Now, and not when the loop comes to it: whoever is being admitted may have been checked against what was before.
    pass_moment()
    on_every_hub(lambda hub: hub.rights.ask_anew())


signals.channels_refreshed.connect(recheck_streams, dispatch_uid="events.hub")

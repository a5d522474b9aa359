"""The log in this process's memory: for tests and one-process toys. What was published is gone with the process."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from contextlib import suppress
from itertools import islice
from typing import TYPE_CHECKING

from ..wire import Cursor
from .base import (
    CONTROL_CHANNEL,
    KEY_LIFETIME,
    BaseEventBackend,
    Batch,
    NewEvent,
    Params,
    PublishedEvent,
    ReadResult,
    Retention,
    StoredEvent,
    new_epoch,
)

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Collection, Sequence

#: Appends between two trims: without them a log in memory would grow for as long as the process lives.
TRIM_EVERY = 1000


class MemoryBackend(BaseEventBackend):
    """The log in this process's memory. No options."""

    crosses_processes = False
    is_durable = False

    def __init__(self, params: Params) -> None:
        super().__init__(params)
        self._lock = threading.Lock()
        self._epoch = new_epoch()
        self._position = 0
        self._events: list[StoredEvent] = []
        self._floors: dict[str, int] = {}
        #: When a key was used, and the first event it made; oldest first.
        self._keys: dict[tuple[str, str], tuple[float, PublishedEvent]] = {}
        self._tails: set[_Tail] = set()
        self._until_trim = TRIM_EVERY

    def append(self, events: Sequence[NewEvent]) -> list[PublishedEvent]:
        """Write the events under the lock, and wake the tails."""
        now = time.time()
        published = []
        with self._lock:
            for event in events:
                if event.key is not None and (first := self._first(event.channel, event.key, now)):
                    published.append(first)
                    continue
                self._position += 1
                self._events.append(
                    StoredEvent(
                        position=self._position,
                        channel=event.channel,
                        type=event.type,
                        data=event.data,
                        is_json=event.is_json,
                        created_at=now,
                    )
                )
                cursor = str(Cursor(self._epoch, self._position))
                published.append(PublishedEvent(channel=event.channel, event=event.type, id=cursor))
                if event.key is not None:
                    first = PublishedEvent(channel=event.channel, event=event.type, id=cursor, repeated=True)
                    self._keys[event.channel, event.key] = (now, first)
            self._until_trim -= len(events)
        for tail in tuple(self._tails):
            tail.wake()
        return published

    def _first(self, channel: str, key: str, now: float) -> PublishedEvent | None:
        # Keys are in the order of their use: the expired ones are in front.
        for name, (used, _) in list(self._keys.items()):
            if used >= now - KEY_LIFETIME:
                break
            del self._keys[name]
        found = self._keys.get((channel, key))
        return None if found is None else found[1]

    def head(self) -> Cursor:
        """The cursor of the newest event."""
        with self._lock:
            return Cursor(self._epoch, self._position)

    def read(self, channels: Collection[str], after: int, limit: int) -> ReadResult:
        """Up to `limit` events above `after`."""
        with self._lock:
            found = [event for event in self._after(after) if event.channel in channels]
            return ReadResult(
                events=found[:limit],
                floors={name: floor for name, floor in self._floors.items() if name in channels},
                head=Cursor(self._epoch, self._position),
                more=len(found) > limit,
            )

    def _after(self, position: int) -> list[StoredEvent]:
        # Positions of kept events lie at most as far back as there are events.
        newest = self._events[-(self._position - position) :] if position < self._position else []
        return [event for event in newest if event.position > position]

    def latest(self, channels: Collection[str]) -> dict[str, StoredEvent]:
        """The newest kept event of each channel that has one."""
        with self._lock:
            return {event.channel: event for event in self._events if event.channel in channels}

    def newest(self, channels: Collection[str], limit: int) -> list[StoredEvent]:
        """The newest kept events of the channels."""
        with self._lock:
            found = (event for event in reversed(self._events) if event.channel in channels)
            return list(islice(found, max(0, limit)))[::-1]

    async def tail(self) -> AsyncGenerator[Batch, None]:
        """The log from now on."""
        tail = _Tail(asyncio.get_running_loop())
        self._tails.add(tail)
        try:
            head = self.head()
            yield Batch(events=(), head=head)
            while True:
                await tail.woken.wait()
                tail.woken.clear()
                with self._lock:
                    events = self._after(head.position)
                    head = Cursor(self._epoch, self._position)
                yield Batch(events=events, head=head)
        finally:
            self._tails.discard(tail)

    def channels(self) -> list[str]:
        """The names of the channels that have events, in order."""
        with self._lock:
            return sorted({event.channel for event in self._events} - {CONTROL_CHANNEL})

    def trim(self, retention: Callable[[str], Retention]) -> int:
        """Remove what is not kept."""
        now = time.time()
        kept: deque[StoredEvent] = deque()
        counts: dict[str, int] = {}
        with self._lock:
            before = len(self._events)
            for event in reversed(self._events):
                keep = retention(event.channel)
                count = counts[event.channel] = counts.get(event.channel, 0) + 1
                if (keep.events is not None and count > keep.events) or (
                    keep.seconds is not None and event.created_at < now - keep.seconds
                ):
                    self._floors[event.channel] = max(self._floors.get(event.channel, 0), event.position)
                else:
                    kept.appendleft(event)
            self._events = list(kept)
            return before - len(self._events)

    def clear(self, channels: Collection[str]) -> int:
        """Remove all events of the channels."""
        return self.trim(lambda name: Retention(events=0) if name in channels else Retention())

    def maintain(self, retention: Callable[[str], Retention]) -> None:
        """Trim after every 1000 events."""
        if self._until_trim <= 0:
            self._until_trim = TRIM_EVERY
            self.trim(retention)


class _Tail:
    """Wakes one event loop from any thread."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.woken = asyncio.Event()

    def wake(self) -> None:
        # A loop that was closed without closing the generator is passed over: nobody is left to wake.
        with suppress(RuntimeError):
            self.loop.call_soon_threadsafe(self.woken.set)

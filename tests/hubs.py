"""What tests of hubs and streams share: a log that does what the test says, and a reader in the place of a client."""

from __future__ import annotations

import asyncio
import zlib
from contextlib import aclosing, asynccontextmanager
from typing import TYPE_CHECKING, Any

from django.test import override_settings

from events.backends.base import NewEvent, Params
from events.backends.memory import MemoryBackend
from events.exceptions import BackendUnavailable
from events.hub import Hub
from events.responses import ResponseStream
from events.testing import EventParser, ReceivedEvent

from .waiting import GUARD, until

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable


class Log(MemoryBackend):
    """A log in memory that counts its reads, can fail, and can be held back."""

    def __init__(self) -> None:
        super().__init__(Params("default"))
        self.reads: list[tuple[tuple[str, ...], int]] = []
        self.failures = 0
        #: Reads wait for it.
        self.answers = asyncio.Event()
        self.answers.set()

    def publish(self, channel: str = "news", data: str = "x", **kwargs) -> str | None:
        return self.append([NewEvent(channel=channel, data=data, **kwargs)])[0].id

    async def aread(self, channels, after, limit):
        self.reads.append((tuple(channels), after))
        if self.failures:
            self.failures -= 1
            raise BackendUnavailable("gone")
        await self.answers.wait()
        return self.read(channels, after, limit)

    def new_life(self) -> None:
        """The log was lost: what follows is another one."""
        with self._lock:
            self._epoch, self._position, self._events, self._floors = "newlife", 0, [], {}
        for tail in tuple(self._tails):
            tail.wake()


class Reader:
    """Reads a stream's chunks as a client would."""

    def __init__(self, stream: ResponseStream) -> None:
        self.stream = stream
        self.chunks = stream.chunks()
        self.parser = EventParser()
        self.waiting: list[ReceivedEvent] = []
        self.body = b""
        self.pending: Any = None

    async def chunk(self) -> bytes:
        chunk = await asyncio.wait_for(anext(self.chunks), GUARD)
        self.body += chunk
        self.waiting += self.parser.feed(self.text(chunk))
        return chunk

    def text(self, chunk: bytes) -> bytes:
        """What a chunk says."""
        return chunk

    async def next(self) -> ReceivedEvent:
        async def wait() -> ReceivedEvent:
            # Keep-alives may come for ever.
            while not self.waiting:
                await self.chunk()
            return self.waiting.pop(0)

        return await asyncio.wait_for(wait(), GUARD)

    async def take(self, count: int) -> list[str]:
        return [(await self.next()).data for _ in range(count)]

    async def rest(self) -> bytes:
        """All until the stream ends by itself."""
        while True:
            try:
                await self.chunk()
            except StopAsyncIteration:
                return self.body


@asynccontextmanager
async def hub_with(log: Log, **settings) -> AsyncGenerator[Hub, None]:
    """A hub that was made with these settings."""
    with override_settings(EVENTS=settings):
        hub = Hub(log)
    try:
        yield hub
    finally:
        if hub._task is not None:
            hub._task.cancel()
            await asyncio.wait([hub._task])


@asynccontextmanager
async def reading(hub: Hub, *channels: str, reader: type[Reader] = Reader, **kwargs) -> AsyncGenerator[Any, None]:
    """A stream that has written its first bytes, and is closed in the end."""
    opened = reader(ResponseStream(hub, channels or ("news",), **kwargs))
    async with aclosing(opened.chunks):
        await opened.chunk()
        try:
            yield opened
        finally:
            # A generator that is being read cannot be closed.
            if opened.pending is not None and not opened.pending.done():
                opened.pending.cancel()
                await asyncio.wait([opened.pending])


async def settled(hub: Hub, reader: Reader) -> None:
    """The reader's stream has begun: an event published now is after its start."""
    await asyncio.wait_for(hub.wait_started(), GUARD)
    task = asyncio.ensure_future(reader.next())
    reader.pending = task
    await until(lambda: reader.stream._waiter is not None and reader.stream.position >= hub.head.position)
    assert not task.done()


async def caught_up(hub: Hub, log: Log) -> None:
    """The hub has seen all that the log has."""
    await until(lambda: hub.head == log.head())


async def hub_started(hub: Hub) -> None:
    async with reading(hub) as reader:
        await settled(hub, reader)


def without_tail(hub: Hub) -> None:
    """Let the hub follow nothing: the test hands it what comes."""

    async def wait() -> None:
        await asyncio.Event().wait()

    hub._task = asyncio.get_running_loop().create_task(wait())


def hold_back(log: Log, until: Callable[[], Awaitable[object]]) -> None:
    """Let the log's tail begin when `until()` has returned."""
    tail = log.tail

    async def late():
        await until()
        async with aclosing(tail()) as batches:
            async for batch in batches:
                yield batch

    log.tail = late  # type: ignore[method-assign]


async def never_answers():
    """A tail that says nothing."""
    await asyncio.Event().wait()
    yield


class GzipReader(Reader):
    """Reads a compressed stream with the standard library's own reader of gzip."""

    def __init__(self, stream: ResponseStream) -> None:
        super().__init__(stream)
        self.inflate = zlib.decompressobj(wbits=16 + zlib.MAX_WBITS)

    def text(self, chunk: bytes) -> bytes:
        return self.inflate.decompress(chunk)

"""The load: many streams read cheaply, and one connection that publishes at a steady rate."""

from __future__ import annotations

import asyncio
import time
from importlib import import_module
from typing import TYPE_CHECKING, Any, TypeVar, cast

from bench import machine, payload
from bench.process import BenchError

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

T = TypeVar("T")

KEPT = len(payload.MARK) - 1


class Tally:
    """What all streams together have seen. Latencies in seconds, of the sampled streams only."""

    def __init__(self) -> None:
        self.frames = 0
        self.closed = 0
        self.latencies: list[float] = []


class StreamReader(asyncio.Protocol):
    """One open stream: counts the payloads that arrive, and times them where it is in the sample."""

    __slots__ = ("_rest", "_sampled", "_tally", "opened", "transport")

    def __init__(self, tally: Tally, *, sampled: bool) -> None:
        self._tally = tally
        self._sampled = sampled
        self._rest = b""
        self.opened: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport, to close it later."""
        # Not checked with isinstance: uvloop's transports are not asyncio's.
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        """Count and time what came."""
        now = time.time()
        if self._rest:
            data = self._rest + data
        if not self.opened.done():
            if b"\r\n\r\n" not in data:
                self._rest = data
                return
            if data.startswith(b"HTTP/1.1 200"):
                self.opened.set_result(None)
            else:
                self.opened.set_exception(BenchError(f"a stream was refused: {data[:200]!r}"))
        found = data.count(payload.MARK)
        if found:
            self._tally.frames += found
            if self._sampled:
                # A time cut in two by a chunk boundary is left out: the sample loses one value.
                self._tally.latencies.extend(now - made for made in payload.times(data))
        self._rest = b"" if data.endswith(b"\n") else data[-KEPT:]

    def connection_lost(self, exc: Exception | None) -> None:
        """Count streams that the server ended."""
        self._tally.closed += 1
        if not self.opened.done():
            self.opened.set_exception(BenchError("a stream was closed before its headers came"))


class Streams:
    """A number of open streams of one server."""

    def __init__(self, port: int, path: str) -> None:
        self._port = port
        self._request = (
            f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n"
            "Accept: text/event-stream\r\nCache-Control: no-cache\r\n\r\n"
        ).encode()
        self._readers: list[StreamReader] = []
        self.tally = Tally()

    async def open(self, count: int, *, every: int, at_once: int = 20) -> None:
        """Open ``count`` streams, a few at a time, and wait for the headers of all. One of ``every`` is sampled."""
        loop = asyncio.get_running_loop()
        for start in range(0, count, at_once):
            batch = []
            for index in range(start, min(count, start + at_once)):
                sampled = index % every == 0
                _, reader = await loop.create_connection(
                    lambda sampled=sampled: StreamReader(self.tally, sampled=sampled),  # type: ignore[misc]
                    "127.0.0.1",
                    self._port,
                )
                assert reader.transport is not None
                reader.transport.write(self._request)
                batch.append(reader)
            self._readers.extend(batch)
            await asyncio.wait_for(asyncio.gather(*(reader.opened for reader in batch)), 60.0)

    async def settle(self, *, expected: int, quiet: float = 1.5, longest: float = 60.0) -> None:
        """Wait until ``expected`` frames have come, or none has for ``quiet`` seconds."""
        until = time.monotonic() + longest
        seen, since = self.tally.frames, time.monotonic()
        while self.tally.frames < expected and time.monotonic() < until:
            await asyncio.sleep(0.02)
            if self.tally.frames != seen:
                seen, since = self.tally.frames, time.monotonic()
            elif time.monotonic() - since > quiet:
                return

    async def close(self) -> None:
        """Close all of them."""
        for reader in self._readers:
            if reader.transport:
                reader.transport.abort()
        self._readers.clear()
        await asyncio.sleep(0.2)


class Caller:
    """One keep-alive connection for ordinary requests, one after the other."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def call(self, method: str, path: str, body: bytes = b"") -> bytes:
        """Send a request and read its answer. Raises BenchError where that is not a success."""
        if self._streams is None:
            self._streams = await asyncio.open_connection("127.0.0.1", self._port)
        reader, writer = self._streams
        head = f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1:{self._port}\r\nContent-Type: text/plain\r\n"
        writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        answer = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 60.0)
        length = -1
        for line in answer.split(b"\r\n"):
            name, _, value = line.partition(b":")
            if name.lower() == b"content-length":
                length = int(value)
        if length < 0:
            raise BenchError(f"{method} {path} was answered without a Content-Length")
        content = await asyncio.wait_for(reader.readexactly(length), 60.0)
        if not answer.startswith(b"HTTP/1.1 2"):
            raise BenchError(f"{method} {path} was answered with {answer[:100]!r} {content[:200]!r}")
        return content

    async def publish(self, rate: float, seconds: float, *, path: str = "/publish") -> int:
        """Publish at a steady rate, waiting for each answer. Returns how many were accepted.

        A payload carries the time at which it was due, so that a server that answers late is not measured kindly.
        What could not be sent within twice the time is left out.
        """
        wanted = round(rate * seconds)
        start, start_time = time.monotonic(), time.time()
        for number in range(wanted):
            due = number / rate
            wait = start + due - time.monotonic()
            if wait > 0:
                await asyncio.sleep(wait)
            elif time.monotonic() - start > 2 * seconds:
                return number
            await self.call("POST", path, payload.make(start_time + due, number).encode())
        return wanted

    async def close(self) -> None:
        """Close the connection."""
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None


def run_on_loop(main: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Run ``main`` on uvloop where that is installed, else on asyncio's own loop."""
    if machine.version("uvloop"):
        result: T = import_module("uvloop").run(main())
        return result
    return asyncio.run(main())

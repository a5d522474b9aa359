"""The load: many streams read cheaply, and one connection that publishes at a steady rate."""

from __future__ import annotations

import asyncio
import selectors
import socket
import time
from importlib import import_module
from typing import TYPE_CHECKING, Any, TypeVar

from bench import machine, payload
from bench.process import BenchError

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Sequence

T = TypeVar("T")

KEPT = len(payload.MARK) - 1
PATIENCE = 60.0


class Tally:
    """What all streams together have seen. Latencies in seconds, of the sampled streams only."""

    def __init__(self) -> None:
        self.frames = 0
        self.closed = 0
        self.latencies: list[float] = []


class Stream:
    """One open stream. ``opened`` is done when its headers have come, and the first bytes after them where asked."""

    __slots__ = ("opened", "rest", "sampled", "socket")

    def __init__(self, opened: asyncio.Future[None], connected: socket.socket, *, sampled: bool) -> None:
        self.opened = opened
        self.rest = b""
        self.sampled = sampled
        self.socket = connected


class Streams:
    """
    A number of open streams of one server, read into one buffer with a selector of their own.

    asyncio's transports would do it, for three times the time: with many streams the load's core, not the server's,
    would then bound the figures.
    """

    def __init__(self, port: int, path: str, *, cookie: str = "", body: bool = False) -> None:
        self._address = ("127.0.0.1", port)
        self._request = (
            f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n"
            "Accept: text/event-stream\r\nCache-Control: no-cache\r\n" + (f"Cookie: {cookie}\r\n" if cookie else "")
        ).encode() + b"\r\n"
        self._body = body
        self._buffer = bytearray(1 << 18)
        self._selector: Any = None
        self._all: list[Stream] = []
        self.tally = Tally()

    async def open(self, count: int, *, every: int, at_once: int = 20) -> None:
        """Open ``count`` more streams, a few at a time, and wait for all of them. One of ``every`` is sampled."""
        for start in range(0, count, at_once):
            batch = [
                await self._connect(sampled=index % every == 0) for index in range(start, min(count, start + at_once))
            ]
            await asyncio.wait_for(asyncio.gather(*(stream.opened for stream in batch)), PATIENCE)

    async def _connect(self, *, sampled: bool) -> Stream:
        loop = asyncio.get_running_loop()
        if self._selector is None:
            self._selector = selectors.DefaultSelector()
            # A selector is itself a file that becomes readable when one of its own does.
            loop.add_reader(self._selector, self._read)
        connected = socket.socket()
        connected.setblocking(False)
        await asyncio.wait_for(loop.sock_connect(connected, self._address), PATIENCE)
        stream = Stream(loop.create_future(), connected, sampled=sampled)
        self._all.append(stream)
        self._selector.register(connected, selectors.EVENT_READ, stream)
        connected.send(self._request)
        return stream

    def _read(self) -> None:
        """Read what has come, once from each stream, so that the publisher gets its turn soon."""
        assert self._selector is not None
        buffer, tally = self._buffer, self.tally
        for key, _ in self._selector.select(0):
            stream: Stream = key.data
            try:
                size = stream.socket.recv_into(buffer)
            except BlockingIOError:
                continue
            except OSError:
                size = 0
            if not size:
                self._lost(stream)
            elif stream.rest or not stream.opened.done() or buffer[size - 1] != 10:
                self._read_in_part(stream, bytes(buffer[:size]))
            else:
                found = buffer.count(payload.MARK, 0, size)
                tally.frames += found
                if found and stream.sampled:
                    self._time(buffer[:size])

    def _read_in_part(self, stream: Stream, data: bytes) -> None:
        """Read what does not begin or does not end with a line, or is the beginning."""
        data = stream.rest + data
        if not stream.opened.done():
            head, blank, body = data.partition(b"\r\n\r\n")
            if not blank or (self._body and not body):
                stream.rest = data
                return
            # django-eventstream refuses with an event.
            if head.startswith(b"HTTP/1.1 200") and b"event: stream-error" not in body:
                stream.opened.set_result(None)
            else:
                stream.opened.set_exception(BenchError(f"a stream was refused: {data[:200]!r}"))
        found = data.count(payload.MARK)
        self.tally.frames += found
        if found and stream.sampled:
            # A time cut in two by a chunk boundary is left out: the sample loses one value.
            self._time(data)
        stream.rest = b"" if data.endswith(b"\n") else data[-KEPT:]

    def _time(self, data: bytes | bytearray) -> None:
        now = time.time()
        self.tally.latencies.extend(now - made for made in payload.times(data))

    def _lost(self, stream: Stream) -> None:
        """Count streams that the server ended."""
        assert self._selector is not None
        self.tally.closed += 1
        self._selector.unregister(stream.socket)
        stream.socket.close()
        if not stream.opened.done():
            stream.opened.set_exception(BenchError("a stream was closed before its headers came"))

    async def settle(self, *, expected: int, quiet: float = 1.5, longest: float = 30.0) -> None:
        """Wait until ``expected`` frames have come, or none has for ``quiet`` seconds."""
        until = time.monotonic() + longest
        seen, since = self.tally.frames, time.monotonic()
        while self.tally.frames < expected and time.monotonic() < until:
            await asyncio.sleep(0.02)
            if self.tally.frames != seen:
                seen, since = self.tally.frames, time.monotonic()
            elif time.monotonic() - since > quiet:
                return

    async def close(self, *, quiet: float = 0.2) -> None:
        """Close all of them, and give the server ``quiet`` seconds to see it."""
        if self._selector is not None:
            asyncio.get_running_loop().remove_reader(self._selector)
            self._selector.close()
            self._selector = None
        for stream in self._all:
            stream.socket.close()
        self._all.clear()
        await asyncio.sleep(quiet)


class Caller:
    """One keep-alive connection for ordinary requests."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def call(self, method: str, path: str, *bodies: bytes) -> bytes:
        """
        Send a request and read its answer; several bodies are as many requests, sent before the first answer is read.

        Returns the last answer. Raises BenchError where one is not a success.
        """
        if self._streams is None:
            self._streams = await asyncio.open_connection("127.0.0.1", self._port)
        head = f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1:{self._port}\r\nContent-Type: text/plain\r\n"
        sent = bodies or (b"",)
        self._streams[1].write(b"".join(f"{head}Content-Length: {len(it)}\r\n\r\n".encode() + it for it in sent))
        answers = [await asyncio.wait_for(self._answer(f"{method} {path}"), PATIENCE) for _ in sent]
        return answers[-1]

    async def _answer(self, request: str) -> bytes:
        assert self._streams is not None
        reader = self._streams[0]
        answer = await reader.readuntil(b"\r\n\r\n")
        length = -1
        for line in answer.split(b"\r\n"):
            name, _, value = line.partition(b":")
            if name.lower() == b"content-length":
                length = int(value)
        if length < 0:
            raise BenchError(f"{request} was answered without a Content-Length")
        content = await reader.readexactly(length)
        if not answer.startswith(b"HTTP/1.1 2"):
            raise BenchError(f"{request} was answered with {answer[:100]!r} {content[:200]!r}")
        return content

    async def publish(
        self, rate: float, seconds: float, *, burst: int = 1, pipelined: bool = False, size: int = payload.SIZE
    ) -> int:
        """
        Publish ``rate`` times a second, ``burst`` events each time. Returns how many events were accepted.

        The next one waits for the answer. A payload carries the time at which it was due, so that a server that
        answers late is not measured kindly. What could not be sent within twice the time is left out.
        """
        turns = round(rate * seconds)
        start, start_time = time.monotonic(), time.time()
        for turn in range(turns):
            due = turn / rate
            wait = start + due - time.monotonic()
            if wait > 0:
                await asyncio.sleep(wait)
            elif time.monotonic() - start > 2 * seconds:
                return turn * burst
            numbers = range(turn * burst, (turn + 1) * burst)
            events = [payload.make(start_time + due, number, size).encode() for number in numbers]
            await self._publish(events, pipelined=pipelined)
        return turns * burst

    async def _publish(self, events: Sequence[bytes], *, pipelined: bool) -> None:
        if len(events) == 1 or pipelined:
            await self.call("POST", "/publish", *events)
        else:
            await self.call("POST", "/burst", b"\n".join(events))

    async def close(self) -> None:
        """Close the connection."""
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None


class Stalled:
    """
    A client that stops reading after the headers, with a small window and an ordinary network's segments.

    Over the loopback interface's own large segments the kernel would hold megabytes for it before the server sees
    that it stalls.
    """

    def __init__(self, port: int, path: str) -> None:
        self._server = port
        self._socket = socket.socket()
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        if hasattr(socket, "TCP_MAXSEG"):
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, 1460)
        self._socket.settimeout(PATIENCE)
        self._path = path

    def open(self) -> None:
        """Send the request, and read until its headers have come."""
        self._socket.connect(("127.0.0.1", self._server))
        request = f"GET {self._path} HTTP/1.1\r\nHost: 127.0.0.1:{self._server}\r\nAccept: text/event-stream\r\n\r\n"
        self._socket.sendall(request.encode())
        head = b""
        while b"\r\n\r\n" not in head:
            chunk = self._socket.recv(64)
            if not chunk:
                raise BenchError("the stream that was to stall was closed")
            head += chunk

    def waiting(self) -> int | None:
        """Bytes that the kernel holds for it on the server's side. None where it does not tell."""
        return machine.unsent(self._server, self._socket.getsockname()[1])

    def close(self) -> None:
        """Go away."""
        self._socket.close()


def run_on_loop(main: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Run ``main`` on uvloop where that is installed, else on asyncio's own loop."""
    if machine.version("uvloop"):
        result: T = import_module("uvloop").run(main())
        return result
    return asyncio.run(main())

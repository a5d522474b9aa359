"""
A TCP proxy that can do to what passes through it what a network does, and what a server in trouble does.

It loses bytes, delays them, breaks connections, and answers HTTP requests itself. What is not HTTP passes as it is: the
tests of engines use it, too.
"""

from __future__ import annotations

import asyncio
import re
import socket
import struct
import threading
import time
from collections import deque
from contextlib import suppress
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Mapping

    from typing_extensions import Self

T = TypeVar("T")

#: Seconds for the proxy to do what it is told.
PATIENCE = 10
#: In the path of every stream's request, and of no other.
STREAM = "/stream/"
#: Bytes that are read at once.
CHUNK = 65_536
#: How HTTP begins; what no engine's client begins with.
METHOD = re.compile(rb"[A-Z]{1,10}(?: |\Z)")


@dataclass(eq=False)
class Request:
    """A request that came, and how far its answer is."""

    method: str
    #: With its query.
    path: str
    #: By their names in small letters.
    headers: dict[str, str]
    #: When it came (`time.monotonic()`).
    at: float
    #: The answer's status; 0 until its head has passed.
    status: int = 0
    #: The answer is complete, or its connection has gone.
    is_over: bool = False
    #: The proxy has answered it itself.
    is_refused: bool = False
    #: Seconds that the answer is held back, and bytes behind its head after which it breaks off.
    delay: float = 0
    most: int | None = None

    @property
    def is_stream(self) -> bool:
        """Whether it asks for a stream of events."""
        return STREAM in self.path

    @property
    def is_open(self) -> bool:
        """Whether its answer has begun and goes on."""
        return self.status == HTTPStatus.OK and not self.is_over


@dataclass
class Refusal:
    """What the proxy answers by itself."""

    path: str
    status: int
    headers: dict[str, str]
    body: bytes

    def response(self) -> bytes:
        """All bytes of the answer."""
        try:
            phrase = HTTPStatus(self.status).phrase
        except ValueError:
            phrase = "Unknown"
        has_body = self.status not in (HTTPStatus.NO_CONTENT, HTTPStatus.NOT_MODIFIED)
        length = {"Content-Length": str(len(self.body))} if has_body else {}
        lines = [f"HTTP/1.1 {self.status} {phrase}", *(f"{k}: {v}" for k, v in {**self.headers, **length}.items())]
        return "\r\n".join([*lines, "", ""]).encode() + (self.body if has_body else b"")


class Source:
    """What one end sends, which may be looked at before it is taken."""

    def __init__(self, reader: asyncio.StreamReader) -> None:
        self.reader = reader
        self.buffer = b""

    async def more(self) -> bool:
        """Wait for bytes. False where there come no others."""
        try:
            data = await self.reader.read(CHUNK)
        except OSError:
            return False
        self.buffer += data
        return bool(data)

    async def take(self) -> bytes:
        """The next bytes, as many as there are. None at the end."""
        if not self.buffer:
            await self.more()
        data, self.buffer = self.buffer, b""
        return data

    async def take_at_most(self, count: int) -> bytes:
        """The next bytes, no more than so many. None at the end."""
        if not self.buffer:
            await self.more()
        data, self.buffer = self.buffer[:count], self.buffer[count:]
        return data

    async def through(self, end: bytes) -> bytes:
        """The next bytes to the end of `end`. Raises `EOFError` where that does not come."""
        while end not in self.buffer:
            if not await self.more():
                raise EOFError
        found, _, self.buffer = self.buffer.partition(end)
        return found + end


def read_head(head: bytes) -> tuple[str, str, dict[str, str]]:
    """Method, path and headers of a request."""
    first, headers = _read_lines(head)
    method, path, _ = first.split(" ", 2)
    return method, path, headers


def read_status(head: bytes) -> tuple[int, dict[str, str]]:
    """Status and headers of an answer."""
    first, headers = _read_lines(head)
    return int(first.split()[1]), headers


def _read_lines(head: bytes) -> tuple[str, dict[str, str]]:
    first, *lines = head.decode("latin-1").split("\r\n")
    pairs = (line.partition(":") for line in lines if line)
    return first, {name.strip().lower(): value.strip() for name, _, value in pairs}


class Body:
    """Tells where the body of an answer ends, while it passes."""

    def __init__(self, status: int, headers: Mapping[str, str], *, is_empty: bool) -> None:
        self._is_chunked = "chunked" in headers.get("transfer-encoding", "")
        #: Bytes of the body, or of the chunk with its line's end, that are still to come. None: all until the end.
        self._left = 0 if self._is_chunked else int(headers["content-length"]) if "content-length" in headers else None
        self._line = b""
        self._was_last = False
        no_body = is_empty or status in (HTTPStatus.NO_CONTENT, HTTPStatus.NOT_MODIFIED)
        self.is_over = no_body or (not self._is_chunked and self._left == 0)

    def feed(self, data: bytes) -> int:
        """How many of these bytes belong to it."""
        if self._left is None:
            return len(data)
        at = 0
        while at < len(data) and not self.is_over:
            if self._left:
                step = min(self._left, len(data) - at)
                self._left -= step
                at += step
                self.is_over = not self._is_chunked and not self._left
            else:
                end = data.find(b"\n", at) + 1 or len(data)
                self._line += data[at:end]
                at = end
                if self._line.endswith(b"\n"):
                    self._read_line(self._line.strip())
                    self._line = b""
        return at

    def _read_line(self, line: bytes) -> None:
        if self._was_last:
            # What follows the last chunk are headers, and an empty line.
            self.is_over = not line
        elif size := int(line.partition(b";")[0], 16):
            self._left = size + len(b"\r\n")
        else:
            self._was_last = True


class Link:
    """One client's connection, and the one to the server that belongs to it."""

    def __init__(self) -> None:
        #: From now on nothing of it arrives, in either direction.
        self.is_cut = False
        self.writers: list[asyncio.StreamWriter] = []
        #: The requests whose answer is not complete, oldest first.
        self.pending: deque[Request] = deque()
        #: There is one more of these.
        self.asked = asyncio.Event()

    def reset(self) -> None:
        """End both connections with a reset, dropping what is under way."""
        for writer in self.writers:
            if (sock := writer.get_extra_info("socket")) is not None:
                with suppress(OSError):
                    # No lingering: what would be an orderly end becomes a reset.
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()

    def close(self) -> None:
        """End both connections, which may be in the middle of an answer."""
        for writer in self.writers:
            writer.close()

    @property
    def streams(self) -> list[Request]:
        """Its requests for a stream that have an answer which goes on, or none yet."""
        return [request for request in self.pending if request.is_stream and not request.is_over]


@dataclass
class Rules:
    """What is done to requests that come from now on. The first part is of their path: "" means all."""

    refusals: list[Refusal] = field(default_factory=list)
    delay: tuple[str, float] = ("", 0)
    most: tuple[str, int | None] = ("", None)


class Proxy:
    """
    Passes connections to `port` on to `target_port` of 127.0.0.1, on a thread of its own.

    with Proxy(engine.port) as proxy:
        proxy.cut()

    HTTP/1.1 is understood as far as it is needed to know one request, and one answer, from the next.
    """

    def __init__(self, target_port: int) -> None:
        self.target_port = target_port
        self.port = 0
        #: Every request that came, oldest first, whoever answered it.
        self.requests: list[Request] = []
        #: How many connections were made.
        self.connections = 0
        self._changed = threading.Condition()
        self._fault: BaseException | None = None
        self._rules = Rules()
        self._links: set[Link] = set()
        self._is_cut = False
        #: Answers that are held back wait for it.
        self._released = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True)
        self._thread.start()
        self._server = self._run(asyncio.start_server(self._accept, "127.0.0.1", 0))
        self.port = self._server.sockets[0].getsockname()[1]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._run(self._stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(PATIENCE)
        self._loop.close()
        if self._fault is not None:
            raise RuntimeError("the proxy did not understand what passed through it") from self._fault

    # What it has seen

    @property
    def url(self) -> str:
        """Where it is."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def open_connections(self) -> int:
        """How many connections there are now."""
        return len(self._links)

    @property
    def streams(self) -> list[Request]:
        """Every request for a stream that came, oldest first."""
        return [request for request in tuple(self.requests) if request.is_stream]

    @property
    def open_streams(self) -> list[Request]:
        """The streams that are open now: the head of the answer has passed, and it goes on."""
        return [request for request in self.streams if request.is_open]

    def wait_until(self, condition: Callable[[], T], what: str, guard: float = 30) -> T:
        """
        Wait until something is true that the proxy can see, and return it.

        It is looked at whenever a request, an answer or a connection begins or ends. The thread does nothing else
        meanwhile: a test with Playwright's synchronous interface has a way of its own where Playwright must go on.
        """
        with self._changed:
            answer = self._changed.wait_for(condition, guard)
        assert answer, f"waited {guard} s until {what}; there were {[(r.path, r.status) for r in self.requests[-20:]]}"
        return answer

    # What it can be told to do

    def cut(self) -> None:
        """
        From now on swallow all bytes, in both directions, of open connections and of new ones.

        Nothing is closed and new connections are accepted: neither end is told anything, not even that the other one
        has closed.
        """
        self._run(self._set_cut(True))

    def stall(self) -> None:
        """`cut` those connections that have a stream now. Others work, and so do new ones."""
        self._run(self._cut_streams())

    def heal(self) -> None:
        """Let new connections and new requests work, whatever was said before. Those that were cut stay dead."""
        self._run(self._set_cut(False))
        self._rules = Rules()

    def close_all(self) -> None:
        """Reset every connection, so that both ends see it at once."""
        self._run(self._reset_all())

    def close_streams(self, *, reset: bool = False) -> None:
        """End the connections that have a stream now in the middle of it: with what passed so far, or with a reset."""
        self._run(self._close_streams(reset))

    def refuse(
        self, status: int, headers: Mapping[str, str] | None = None, body: bytes = b"", *, path: str = STREAM
    ) -> None:
        """
        Answer requests with this, until `accept` or `heal`; the server does not see them.

        Those that come from now on, with `path` in theirs: of streams, unless said otherwise; "" means all. The
        Content-Type is text/plain unless given. What was refused for the same path before is so no more.
        """
        refusal = Refusal(path, status, {"Content-Type": "text/plain", **(headers or {})}, body)
        self._rules.refusals = [refusal, *(other for other in self._rules.refusals if other.path != path)]

    def accept(self) -> None:
        """Refuse nothing any more."""
        self._rules.refusals = []

    def delay(self, seconds: float, *, path: str = STREAM) -> None:
        """Hold the answers to requests that come from now on back, for so long after the request. 0: no more."""
        self._rules.delay = (path, seconds)

    def release(self) -> None:
        """Hold no answer back to a request that has come."""
        self._loop.call_soon_threadsafe(self._release)

    def break_after(self, most: int | None, *, path: str = STREAM) -> None:
        """
        Break off the answers to requests that come from now on, so many bytes behind the head. None: no more.

        The lines that part chunks are counted, too: a test that wants a certain place breaks off at each.
        """
        self._rules.most = (path, most)

    # On the proxy's own thread

    def _run(self, doing: Coroutine[None, None, T]) -> T:
        return asyncio.run_coroutine_threadsafe(doing, self._loop).result(PATIENCE)

    def _note(self) -> None:
        """Let those look who wait for something."""
        with self._changed:
            self._changed.notify_all()

    def _release(self) -> None:
        for request in self.requests:
            request.delay = 0
        self._released.set()
        self._released = asyncio.Event()

    async def _hold(self, seconds: float) -> None:
        with suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._released.wait(), seconds)

    async def _set_cut(self, is_cut: bool) -> None:
        self._is_cut = is_cut
        if is_cut:
            for link in self._links:
                link.is_cut = True

    async def _cut_streams(self) -> None:
        for link in self._links:
            link.is_cut = link.is_cut or bool(link.streams)

    async def _reset_all(self) -> None:
        for link in tuple(self._links):
            link.reset()
            self._forget(link)

    async def _close_streams(self, reset: bool) -> None:
        for link in tuple(self._links):
            if link.streams:
                if reset:
                    link.reset()
                else:
                    link.close()
                self._forget(link)

    def _forget(self, link: Link) -> None:
        self._links.discard(link)
        for request in link.pending:
            request.is_over = True
        link.pending.clear()
        self._note()

    async def _stop(self) -> None:
        for listening in self._server.sockets:
            self._loop.remove_reader(listening.fileno())
        # A connection that was just accepted becomes a link first: the server would lose it.
        await self._go_round()
        self._server.close()
        await self._reset_all()
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        # What was reset is closed a turn of the loop later.
        await self._go_round()

    async def _go_round(self) -> None:
        for _ in range(5):
            await asyncio.sleep(0)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        link = Link()
        link.is_cut = self._is_cut
        link.writers.append(writer)
        self._links.add(link)
        self.connections += 1
        task = self._loop.create_task(self._serve(link, reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._finished)
        self._note()

    def _finished(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._fault = self._fault or error

    async def _serve(self, link: Link, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            if link.is_cut:
                await self._swallow(Source(reader))
            else:
                await self._pass_on(link, reader, writer)
        finally:
            # Both ends have closed it, or the one that there is.
            link.close()
            self._forget(link)

    async def _pass_on(self, link: Link, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        to_writer: asyncio.StreamWriter | None = None
        try:
            # At once, since servers of databases speak first.
            to_reader, to_writer = await asyncio.open_connection("127.0.0.1", self.target_port)
        except OSError:
            if not self._rules.refusals:
                # Nobody listens there: the client is to see what it would see without us.
                link.reset()
                return
            await self._take_requests(link, Source(reader), None)
            return
        link.writers.append(to_writer)
        await asyncio.gather(
            self._take_requests(link, Source(reader), to_writer), self._take_answers(link, Source(to_reader), writer)
        )

    async def _write(self, link: Link, writer: asyncio.StreamWriter, data: bytes) -> None:
        if not link.is_cut and data:
            with suppress(OSError):
                writer.write(data)
                await writer.drain()

    async def _swallow(self, source: Source) -> None:
        while await source.take():
            pass

    # From client to server

    async def _take_requests(self, link: Link, source: Source, to: asyncio.StreamWriter | None) -> None:
        await source.more()
        if METHOD.match(source.buffer):
            with suppress(EOFError):
                while True:
                    await self._take_request(link, source, to)
        elif to is not None:
            # Not HTTP: there will be no request, and nothing to wait for before an answer.
            while data := await source.take():
                await self._write(link, to, data)
        self._end(link, to)

    async def _take_request(self, link: Link, source: Source, to: asyncio.StreamWriter | None) -> None:
        head = await source.through(b"\r\n\r\n")
        method, path, headers = read_head(head)
        request = Request(method, path, headers, time.monotonic())
        rules = self._rules
        if rules.delay[0] in path:
            request.delay = rules.delay[1]
        if rules.most[0] in path:
            request.most = rules.most[1]
        # What is cut was never seen by anybody.
        if not link.is_cut:
            self.requests.append(request)
        refusal = next((refusal for refusal in rules.refusals if refusal.path in path), None)
        left = int(headers.get("content-length", 0))
        if refusal is not None:
            while left:
                if not (data := await source.take_at_most(left)):
                    raise EOFError
                left -= len(data)
            await self._refuse(link, request, refusal)
        elif to is None:
            link.reset()
            raise EOFError
        else:
            link.pending.append(request)
            self._note()
            await self._write(link, to, head)
            # A body of chunks ends where nobody here looks; browsers send none.
            while left or "transfer-encoding" in headers or "upgrade" in headers:
                if not (data := await source.take_at_most(left or CHUNK)):
                    raise EOFError
                left = max(0, left - len(data))
                await self._write(link, to, data)

    async def _refuse(self, link: Link, request: Request, refusal: Refusal) -> None:
        request.is_refused = True
        if request.delay:
            await self._hold(request.delay)
        response = refusal.response()
        if request.method == "HEAD":
            response = response[: response.index(b"\r\n\r\n") + 4]
        await self._write(link, link.writers[0], response)
        request.status = refusal.status
        request.is_over = True
        self._note()

    # From server to client

    async def _take_answers(self, link: Link, source: Source, writer: asyncio.StreamWriter) -> None:
        with suppress(EOFError):
            while True:
                if not source.buffer and not await source.more():
                    break
                if not link.pending:
                    # No answer to a request: another protocol than HTTP, or a server's goodbye.
                    await self._write(link, writer, await source.take())
                    continue
                await self._take_answer(link, source, writer, link.pending[0])
        self._end(link, writer)

    async def _take_answer(self, link: Link, source: Source, writer: asyncio.StreamWriter, request: Request) -> None:
        head = await source.through(b"\r\n\r\n")
        status, headers = read_status(head)
        wait = request.at + request.delay - time.monotonic()
        if wait > 0:
            await self._hold(wait)
        await self._write(link, writer, head)
        if 100 <= status < 200 and status != HTTPStatus.SWITCHING_PROTOCOLS:
            return
        if not link.is_cut:
            request.status = status
            self._note()
        body = Body(status, headers, is_empty=request.method == "HEAD")
        passed = 0
        while not body.is_over:
            if not source.buffer and not await source.more():
                raise EOFError
            data = source.buffer
            length = body.feed(data)
            data, source.buffer = data[:length], data[length:]
            if request.most is not None and passed + length > request.most:
                await self._write(link, writer, data[: request.most - passed])
                link.close()
                raise EOFError
            await self._write(link, writer, data)
            passed += length
        request.is_over = True
        if link.pending:
            link.pending.popleft()
        self._note()

    def _end(self, link: Link, writer: asyncio.StreamWriter | None) -> None:
        if not link.is_cut:
            if writer is not None:
                writer.close()
            for request in link.pending:
                request.is_over = True
            self._note()

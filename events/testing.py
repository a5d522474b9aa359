"""
For the tests of sites that use this app.

    from events.testing import StreamClient, capture_events

    def test_order_is_announced(...):
        with capture_events() as published:
            order.ship()
        assert [(event.channel, event.data) for event in published] == [("orders", {"id": 1, "state": "shipped"})]

A stream reads the log on threads of its own: in a test that wraps itself in a transaction (`TestCase`, or
pytest-django's `db`) it does not see what the test published. Use `TransactionTestCase` (`transactional_db`), or the
memory backend.
"""

from __future__ import annotations

import asyncio
import json
import re
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from django.core.handlers.asgi import ASGIHandler

from . import publishing

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Mapping

    from .backends.base import NewEvent


#: "One leading U+FEFF BYTE ORDER MARK character must be ignored if any are present."
BOM = b"\xef\xbb\xbf"
_LINE_END = re.compile(rb"[\r\n]")


@dataclass(frozen=True, slots=True, kw_only=True)
class CapturedEvent:
    """An event that was published while `capture_events` looked on. `data` is as it was published, or equal to it."""

    channel: str
    event: str
    data: Any
    key: str | None


@contextmanager
def capture_events() -> Iterator[list[CapturedEvent]]:
    """
    A list that grows by each event published inside the block, in any thread of this process.

    Events count when `publish()` was called, as Django counts mails: also where the transaction is rolled back later.
    """
    captured: list[CapturedEvent] = []

    def observe(event: NewEvent) -> None:
        data = json.loads(event.data) if event.is_json else event.data
        captured.append(CapturedEvent(channel=event.channel, event=event.type, data=data, key=event.key))

    publishing.observers.append(observe)
    try:
        yield captured
    finally:
        publishing.observers.remove(observe)


@dataclass(frozen=True, slots=True)
class ReceivedEvent:
    """An event as a browser would dispatch it. `id` is the last event id: the cursor to resume from."""

    event: str
    data: str
    id: str

    def json(self) -> Any:
        """The data, read as JSON."""
        return json.loads(self.data)


class EventParser:
    """
    Bytes to events, by the interpretation rules of the HTML standard.

    https://html.spec.whatwg.org/multipage/server-sent-events.html#event-stream-interpretation
    """

    def __init__(self) -> None:
        self._buffer = b""
        self._at_start = True
        self._after_cr = False
        self._data: list[str] = []
        self._type = ""
        self._id_buffer = ""
        #: "The last event ID string of the event source": set when a block ends.
        self.last_event_id = ""
        #: Milliseconds, from the newest `retry:` line.
        self.retry: int | None = None
        #: How many comment lines came.
        self.comments = 0

    def feed(self, chunk: bytes) -> list[ReceivedEvent]:
        """The events that end in this chunk."""
        self._buffer += chunk
        if self._at_start and self._buffer:
            if len(self._buffer) < len(BOM) and BOM.startswith(self._buffer):
                return []
            self._buffer = self._buffer.removeprefix(BOM)
            self._at_start = False
        events = []
        while (line := self._take_line()) is not None:
            if line:
                self._field(line.decode("utf-8", "replace"))
            elif (event := self._dispatch()) is not None:
                events.append(event)
        return events

    def _take_line(self) -> bytes | None:
        if self._after_cr and self._buffer:
            # A CR ends its line at once; that it was the first half of a CRLF shows later, maybe in the next chunk.
            self._buffer = self._buffer.removeprefix(b"\n")
            self._after_cr = False
        found = _LINE_END.search(self._buffer)
        if found is None:
            return None
        line, self._buffer = self._buffer[: found.start()], self._buffer[found.end() :]
        self._after_cr = found[0] == b"\r"
        return line

    def _field(self, line: str) -> None:
        name, colon, value = line.partition(":")
        value = value.removeprefix(" ")
        if not name and colon:
            self.comments += 1
        elif name == "data":
            self._data.append(value)
        elif name == "event":
            self._type = value
        elif name == "id" and "\0" not in value:
            self._id_buffer = value
        elif name == "retry" and value.isascii() and value.isdigit():
            self.retry = int(value)

    def _dispatch(self) -> ReceivedEvent | None:
        self.last_event_id = self._id_buffer
        data, type_ = self._data, self._type
        self._data, self._type = [], ""
        if not data:
            return None
        return ReceivedEvent(type_ or "message", "\n".join(data), self.last_event_id)


class StreamClient:
    """
    Opens a stream on an ASGI application in this process, and reads it without ever hanging.

        async with StreamClient("/events/stream/?channel=news") as stream:
            await apublish("news", "hello")
            assert (await stream.next(timeout=5)).data == "hello"

    `status` and `headers` (lower-case names) are set when the block begins. `headers` given here are sent; log in by
    sending a `cookie`.
    """

    def __init__(self, url: str, *, headers: Mapping[str, str] | None = None, application: Any = None) -> None:
        parts = urlsplit(url)
        self._scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": "GET",
            "scheme": "http",
            "path": parts.path,
            "raw_path": parts.path.encode(),
            "query_string": parts.query.encode(),
            "root_path": "",
            "headers": [
                (b"host", b"testserver"),
                *((name.lower().encode(), value.encode("latin-1")) for name, value in (headers or {}).items()),
            ],
            "client": ("127.0.0.1", 1),
            "server": ("testserver", 80),
        }
        self._application = application or ASGIHandler()
        self._parser = EventParser()
        self._events: asyncio.Queue[ReceivedEvent | None] = asyncio.Queue()
        self._started = asyncio.Event()
        self._gone = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._asked = False
        self.status = 0
        self.headers: dict[str, str] = {}
        #: All that came, as bytes.
        self.body = b""

    @property
    def last_event_id(self) -> str:
        """The cursor of the newest event, for the next connect."""
        return self._parser.last_event_id

    @property
    def retry(self) -> int | None:
        """Milliseconds after which the server wants the client back."""
        return self._parser.retry

    async def __aenter__(self) -> StreamClient:
        self._task = asyncio.ensure_future(self._run())
        try:
            await asyncio.wait_for(self._started.wait(), 10)
        except BaseException:
            # Without `__aexit__` nobody else would end it.
            self._task.cancel()
            raise
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self._gone.set()
        if self._task is not None:
            await asyncio.wait_for(self._task, 10)

    async def next(self, timeout: float = 5.0) -> ReceivedEvent:
        """The next event. Raises `TimeoutError` after `timeout` seconds, `EOFError` where the stream has ended."""
        try:
            event = await asyncio.wait_for(self._events.get(), timeout)
        except asyncio.TimeoutError as error:
            # Until Python 3.11 it is not the built-in one.
            raise TimeoutError(f"no event came in {timeout} s") from error
        if event is None:
            self._events.put_nowait(None)
            raise EOFError("the stream has ended")
        return event

    async def __aiter__(self) -> AsyncIterator[ReceivedEvent]:
        """The events until the stream ends, each within the default time."""
        while True:
            try:
                yield await self.next()
            except EOFError:
                return

    async def _run(self) -> None:
        try:
            await self._application(self._scope, self._receive, self._send)
        finally:
            self._started.set()
            self._events.put_nowait(None)

    async def _receive(self) -> dict[str, Any]:
        if not self._asked:
            self._asked = True
            return {"type": "http.request", "body": b"", "more_body": False}
        await self._gone.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Mapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            self.headers = {name.decode().lower(): value.decode("latin-1") for name, value in message["headers"]}
            return
        # The first bytes of a stream say that its place in the log is fixed: what is published from now on reaches it.
        self._started.set()
        self.body += message.get("body", b"")
        for event in self._parser.feed(message.get("body", b"")):
            self._events.put_nowait(event)
        if not message.get("more_body", False):
            self._events.put_nowait(None)

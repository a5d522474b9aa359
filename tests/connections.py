"""
A server's side of one ASGI connection, in this process: it does on demand what a real server does when it likes.

The servers themselves are in `tests.servers`. These stand-ins are for what those cannot be made to do at a given
moment: a client that takes nothing from this event on, a `send` that fails at that one.
"""

from __future__ import annotations

import asyncio
import weakref
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from events.testing import EventParser

from .waiting import GUARD, until

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Mapping

    from events.testing import ReceivedEvent


class Transport:
    """What a server cuts a connection with."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection

    def abort(self) -> None:
        self.connection.is_aborted = True
        # A send that waits for the client waits no more.
        self.connection.room.set()
        self.connection.gone.set()


class Connection:
    """One client's connection. `send` is an ordinary coroutine function, of nobody's: it is never stepped."""

    def __init__(self, **options: Any) -> None:
        #: Cleared, the client takes nothing: `send` takes the message and waits.
        self.room = asyncio.Event()
        self.room.set()
        self.gone = asyncio.Event()
        self.ended = asyncio.Event()
        self.is_aborted = False
        #: Whether `receive` says that the client has gone when the response is over.
        self.says_that_it_ended = True
        #: What `send` raises.
        self.error: BaseException | None = None
        self.messages: list[Mapping[str, Any]] = []
        #: The tasks in which `send` was called. Not to keep them: a task of Django's has the response as its result.
        self.senders: list[weakref.ref[asyncio.Task[Any]]] = []
        self.parser = EventParser()
        self.events: list[ReceivedEvent] = []
        self._is_asked = False
        self.options = options

    async def receive(self) -> dict[str, Any]:
        if not self._is_asked:
            self._is_asked = True
            return {"type": "http.request", "body": b"", "more_body": False}
        await self.gone.wait()
        return {"type": "http.disconnect"}

    def take(self, message: Mapping[str, Any]) -> None:
        if self.error is not None:
            raise self.error
        if self.is_aborted:
            # As servers do where the connection is lost.
            return
        if (task := asyncio.current_task()) is not None:
            self.senders.append(weakref.ref(task))
        self.messages.append(message)
        self.events += self.parser.feed(message.get("body", b""))
        if message["type"] == "http.response.body" and not message.get("more_body", False):
            self.ended.set()
            if self.says_that_it_ended:
                self.gone.set()

    async def send(self, message: Mapping[str, Any]) -> None:
        self.take(message)
        await self.room.wait()

    @property
    def status(self) -> int:
        return int(self.messages[0]["status"])

    @property
    def headers(self) -> dict[str, str]:
        return {name.decode().lower(): value.decode() for name, value in self.messages[0]["headers"]}

    @property
    def chunks(self) -> list[bytes]:
        return [message.get("body", b"") for message in self.messages[1:]]

    @property
    def body(self) -> bytes:
        return b"".join(self.chunks)

    @property
    def data(self) -> list[str]:
        return [event.data for event in self.events]


class ServerConnection(Connection):
    """As a server's own: it is stepped. Its connection can be cut, as uvicorn's."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.transport = Transport(self)


class UncutConnection(Connection):
    """A server's own, whose connection cannot be cut."""


class Steps:
    """What granian's `send` returns: something to iterate over, without `send` and `throw`."""

    def __init__(self, waits: list[Any]) -> None:
        self.waits = waits

    def __await__(self) -> Steps:
        return self

    def __iter__(self) -> Steps:
        return self

    def __next__(self) -> Any:
        if not self.waits:
            raise StopIteration
        waits_for = self.waits.pop(0)
        if isinstance(waits_for, BaseException):
            raise waits_for
        return waits_for


class IteratedConnection(Connection):
    """A server's own, whose `send` is no coroutine function: it raises when it is called, as granian's."""

    def send(self, message: Mapping[str, Any]) -> Any:
        self.take(message)
        if self.room.is_set():
            return Steps([])
        return Steps([None, None, *self.options.get("waits", [])])


for _kind in (ServerConnection, UncutConnection, IteratedConnection):
    # `events.servers` knows servers by the package that a `send` comes from.
    _kind.__module__ = "uvicorn.tests"


def scope_of(url: str, headers: Mapping[str, str] | None = None, method: str = "GET") -> dict[str, Any]:
    parts = urlsplit(url)
    sent = {"host": "testserver", **(headers or {})}
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": parts.path,
        "raw_path": parts.path.encode(),
        "query_string": parts.query.encode(),
        "root_path": "",
        "headers": [(name.lower().encode(), value.encode("latin-1")) for name, value in sent.items()],
        "client": ("127.0.0.1", 1),
        "server": ("testserver", 80),
    }


class Served:
    """A connection, and the server's task that serves it."""

    def __init__(self, connection: Connection, task: asyncio.Task[None]) -> None:
        self.connection = connection
        self.task = task

    async def finished(self) -> None:
        """The application has returned."""
        await asyncio.wait_for(asyncio.shield(self.task), GUARD)


@asynccontextmanager
async def served(
    application: Any, url: str, connection: Connection | None = None, **kwargs: Any
) -> AsyncGenerator[Served, None]:
    """Open a stream on `application`; at the end the client goes."""
    connection = connection or ServerConnection()
    task = asyncio.ensure_future(application(scope_of(url, **kwargs), connection.receive, connection.send))
    try:
        await until(lambda: len(connection.messages) > 1 or task.done())
        yield Served(connection, task)
    finally:
        connection.gone.set()
        connection.room.set()
        await asyncio.wait([task], timeout=GUARD)
    # What it raised, the test shall see, unless it has looked already.
    if not task.cancelled():
        task.result()

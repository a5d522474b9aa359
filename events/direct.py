"""
The direct lane: streams that the hub writes to itself, under `events.asgi`.

Django handles every request as ever. Where it answers with a stream that nothing on the way has changed, the response
hands the connection over, and Django's request, response, tasks, thread and database connections go. From then on the
hub itself drives the stream's ASGI `send()`: it steps the coroutine once, and only where that suspends, because the
client's buffer is full, a task takes over until the client has caught up.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any

from . import draining, servers
from .hub import DRAIN_PATIENCE, get_hub
from .responses import HANDOFF
from .streams import END, WRITES_PER_TURN, Stream, say_once

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Generator, Mapping

    from .hub import Hub

    Message = Mapping[str, Any]
    Receive = Callable[[], Awaitable[Message]]
    Send = Callable[[Message], Awaitable[None]]
    Application = Callable[[dict[str, Any], Receive, Send], Awaitable[None]]

logger = logging.getLogger("events.direct")


class Handoff:
    """
    How a response gives its connection away: it puts here what its stream is.

    `using` is the alias of the log, `options` are what a `Stream` is made of.
    """

    __slots__ = ("is_disconnected", "options", "using")

    def __init__(self) -> None:
        self.using = ""
        self.options: dict[str, Any] | None = None
        #: The client went while Django was still at it. A server says so once.
        self.is_disconnected = False

    def take(self, using: str, options: dict[str, Any]) -> None:
        """Take the connection: what Django sends from now on is not sent."""
        self.using = using
        self.options = options


class EventsApplication:
    """The ASGI application: Django's, with the direct lane around it."""

    def __init__(self, application: Application) -> None:
        self.application = application

    async def __call__(self, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        """Serve a connection."""
        if scope["type"] == "lifespan":
            await _lifespan(receive, send)
        elif scope["type"] != "http":
            await self.application(scope, receive, send)
        elif (stream := await self._ask(scope, receive, servers.paced(send))) is not None:
            # What Django needed is gone. This frame and the server's own are what a stream keeps, therefore no other.
            del scope, send
            try:
                stream.start()
                # After the last bytes, too, a server says "disconnect".
                while (await receive())["type"] != "http.disconnect":
                    pass
            except asyncio.CancelledError:
                if not stream.has_given_up:
                    # The server ends all that is left of it (hypercorn, after its grace).
                    await stream.say_goodbye()
                    raise
            finally:
                stream.close()

    async def _ask(self, scope: dict[str, Any], receive: Receive, send: Send) -> DirectStream | None:
        """Let Django answer. Returns the stream that it has handed over, if it has."""
        handoff = Handoff()

        async def receive_for_django() -> Message:
            message = await receive()
            if message["type"] == "http.disconnect":
                handoff.is_disconnected = True
            return message

        async def send_for_django(message: Message) -> None:
            if handoff.options is None:
                await send(message)

        await self.application({**scope, HANDOFF: handoff}, receive_for_django, send_for_django)
        if handoff.options is None or handoff.is_disconnected:
            return None
        return DirectStream(get_hub(handoff.using), send, handoff.options)


async def _lifespan(receive: Receive, send: Send) -> None:
    while True:
        message = await receive()
        if message["type"] == "lifespan.startup":
            await send({"type": "lifespan.startup.complete"})
        elif message["type"] == "lifespan.shutdown":
            await draining.drain()
            await send({"type": "lifespan.shutdown.complete"})
            return


class Suspended:
    """What was stepped once and now waits. Awaited, it goes on in the task that awaits it."""

    __slots__ = ("_steps", "_waits_for")

    def __init__(self, steps: Any, waits_for: Any) -> None:
        self._steps = steps
        self._waits_for = waits_for

    def __await__(self) -> Generator[Any, None, None]:
        """Hand the task what is waited for, and go on when it has come."""
        steps, waits_for = self._steps, self._waits_for
        try:
            while True:
                try:
                    yield waits_for
                except BaseException as error:
                    # The task is cancelled: a coroutine may have something to put in order.
                    if not hasattr(steps, "throw"):
                        raise
                    waits_for = steps.throw(error)
                else:
                    waits_for = next(steps)
        except StopIteration:
            return


class DirectStream(Stream):
    """A stream that the hub writes to: without a task, unless there is something to wait for."""

    __slots__ = ("_driver", "_send", "_send_now", "_task", "has_given_up")

    def __init__(self, hub: Hub, send: Send, options: dict[str, Any]) -> None:
        super().__init__(hub, **options)
        self._send = send
        self._send_now = servers.may_be_stepped(send)
        if not self._send_now:
            say_once(
                logger, "something around the application replaces send: streams are written by a task for each event"
            )
        #: The server's task of this connection.
        self._task: asyncio.Task[Any] | None = None
        #: What writes where the hub cannot: to a client that is behind, and what has to be waited for.
        self._driver: asyncio.Task[None] | None = None
        #: The client is not waited for any more.
        self.has_given_up = False

    def start(self) -> None:
        """Begin to write. The task that calls this is the connection's."""
        self._task = asyncio.current_task()
        self.open()
        self.wake()

    async def say_goodbye(self) -> None:
        """End, and give the client a moment to take the last bytes."""
        self.drain()
        # One that has taken nothing until now will not take this either.
        if self._driver is not None and self._waits_since is None:
            await asyncio.wait((self._driver,), timeout=DRAIN_PATIENCE)

    def close(self) -> None:
        """Leave the hub, and write nothing more."""
        driver, self._driver = self._driver, None
        if driver is not None:
            driver.cancel()
        self._task = None
        super().close()

    def give_up(self) -> None:
        """End without waiting for the client any more."""
        self.has_given_up = True
        self._todo |= END
        self.is_over = True
        if not servers.abort(self._send) and self._task is not None:
            # Where a connection cannot be cut, the server is left with what it has buffered.
            self._task.cancel()

    def deliver(self) -> None:
        """Write what the audience was given: at once, where the stream has nothing else to do."""
        audience = self.audience
        if audience is None or self._driver is not None or self._todo or (chunk := self._shared(audience)) is None:
            self.wake()
            return
        self.position = self.hub.head.position
        self._write(self._written(self._counted(chunk)))

    def wake(self) -> None:
        """Write what there is, as far as nothing has to be waited for."""
        if self._driver is not None or self.is_over:
            super().wake()
            return
        for _ in range(WRITES_PER_TURN):
            try:
                chunk = self.poll()
            except Exception as error:  # noqa: BLE001 - it is logged, and ends this stream and no other
                self._break_off(error)
                break
            if chunk is None:
                break
            if not chunk or not self._write(chunk):
                return
        # There is something to wait for, or always more to write.
        self._drive()

    def _write(self, chunk: bytes) -> bool:
        """Write, and return whether the client has room for more."""
        message = {"type": "http.response.body", "body": chunk, "more_body": True}
        if not self._send_now:
            self._drive(message)
            return False
        try:
            steps = self._send(message).__await__()
            # A loop, because that sees the end of the steps without an exception made and caught for each event.
            for waits_for in steps:
                self._drive(sending=Suspended(steps, waits_for))
                return False
        except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001 - it ends this stream and no other
            self._fail(error)
            return False
        return True

    def _drive(self, message: Message | None = None, sending: Suspended | None = None) -> None:
        """Let a task go on from here: with what waits to be sent, or with what waits to be taken."""
        self._waits_since = None if sending is None else self.hub.clock
        self._driver = self.hub.create_task(self._write_on(message, sending))

    async def _write_on(self, message: Message | None, sending: Suspended | None) -> None:
        try:
            if sending is not None:
                await sending
                self._waits_since = None
            elif message is not None:
                await self._send_patiently(message)
            writes = 0
            while not self.is_over:
                try:
                    chunk = self.poll()
                    if chunk is None:
                        chunk = await self.advance()
                    elif not chunk:
                        # It has caught up: the hub goes on.
                        self._driver = None
                        return
                except Exception as error:  # noqa: BLE001 - it is logged, and ends this stream and no other
                    self._break_off(error)
                    break
                if chunk:
                    await self._send_patiently({"type": "http.response.body", "body": chunk, "more_body": True})
                    writes += 1
                    if writes % WRITES_PER_TURN == 0:
                        # A send that never waits would starve the loop, and never see that the client has gone.
                        await asyncio.sleep(0)
            await self._send_patiently({"type": "http.response.body", "body": b"", "more_body": False})
            # A server that stops may not come to say that the client has gone.
            super().close()
        except asyncio.CancelledError as error:
            # By `close`, which has forgotten this task; or by what the server's `send` waits for.
            if self._driver is not None:
                self._fail(error)
            raise
        except Exception as error:  # noqa: BLE001 - whatever it is, it ends this stream and no other
            self._fail(error)

    async def _send_patiently(self, message: Message) -> None:
        self._waits_since = self.hub.clock
        await self._send(message)
        self._waits_since = None

    def _break_off(self, error: Exception) -> None:
        """End a stream that has a fault of ours. Its client comes back, and gets what was not written."""
        logger.error("a stream ended by a fault: channels=%s", ",".join(self.channels), exc_info=error)
        self._todo |= END
        self.is_over = True

    def _fail(self, error: BaseException) -> None:
        """End a stream that cannot be written to."""
        if not isinstance(error, (OSError, asyncio.CancelledError)):
            logger.error("a stream cannot be written: channels=%s", ",".join(self.channels), exc_info=error)
        self.give_up()

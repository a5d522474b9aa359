"""
The response lane: a stream as an async `StreamingHttpResponse`, under any ASGI server, with no set-up.

Under `events.asgi` the response hands its connection over to the direct lane instead.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, cast

from django.core.handlers.wsgi import WSGIRequest
from django.http import HttpRequest, StreamingHttpResponse
from django.utils.cache import patch_vary_headers

from . import wire
from .channels import channel_table, names_for_a_stream
from .compression import accepts_gzip
from .conf import settings
from .exceptions import BackendUnavailable
from .hub import get_hub
from .registry import event_backends
from .rights import moment
from .streams import WRITES_PER_TURN, Stream, say_once
from .threads import let_go

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Iterable

    from .rights import Allowed
    from .wire import Cursor

logger = logging.getLogger("events.responses")

#: Where a request's scope has what takes a stream's connection over, if the site runs under `events.asgi`.
HANDOFF = "events.handoff"

#: Where the log was when the response was made: a stream without a cursor of its own begins there, and one that is
#: finite ends there.
CURSOR_HEADER = "Events-Cursor"
#: Seconds of silence at the most: a client takes a connection for dead after some times as many.
KEEPALIVE_HEADER = "Events-Keepalive"

NOT_UNDER_WSGI = (
    "A stream needs an ASGI server: under WSGI it would hold a worker for as long as the client stays.\n"
    "Serve the site's asgi.py with daphne, uvicorn, hypercorn or granian. For the development server, put 'daphne' "
    "first in INSTALLED_APPS and set ASGI_APPLICATION.\n"
)


class EventStreamResponse(StreamingHttpResponse):
    """
    A stream of the events of `channels`, for a view of one's own.

    The view decides who may read: nothing is checked here. The client's `Last-Event-ID` header, or its `last_event_id`
    parameter, says where to go on, unless `last_event_id` is given; `replay=1`, `envelope=1`, `from=earliest` and
    `follow=0` work as on the app's own stream; but made in a coroutine, a stream with `follow=0` ends where this
    process knows the log to be, a moment behind what somebody has just published. `allowed`, an async function, is
    asked again every `RECHECK`, and whenever something tells that rights have changed; it ends the stream when it
    returns False. It is kept for as long as the stream, so let it not hold the request. `user`, such as
    `str(request.user.pk)`, is whom `MAX_STREAMS_PER_USER` counts it for, and whose streams `disconnect` ends;
    `address`, such as `request.META["REMOTE_ADDR"]`, whom `MAX_STREAMS_PER_ADDRESS` counts it for. `checked`, the
    `rights.moment` before the view made sure that the client may read, and `now`, where the log is, are the app's own.

    Under WSGI this is a 501 that says what to do. Raises `InvalidChannelName` for a name that cannot be one, for no
    channel, and for more than `MAX_CHANNELS_PER_STREAM`.
    """

    def __init__(
        self,
        request: HttpRequest,
        channels: Iterable[str],
        *,
        last_event_id: str | None = None,
        using: str = "default",
        allowed: Allowed = None,
        user: str | None = None,
        address: str | None = None,
        checked: int | None = None,
        now: Cursor | None = None,
    ) -> None:
        names = names_for_a_stream(channels, "a stream follows {} channels (EVENTS['MAX_CHANNELS_PER_STREAM'])")
        if isinstance(request, WSGIRequest):
            self._stream: AsyncGenerator[bytes, None] | None = None
            super().__init__([NOT_UNDER_WSGI], status=501, content_type="text/plain; charset=utf-8")
            return
        # A client that has seen an event says so in the header.
        seen = last_event_id or request.headers.get("Last-Event-ID")
        is_head = request.method == "HEAD"
        is_finite = request.GET.get("follow") == "0"
        rows = [channel_table.find(name) for name in names]
        is_compressible = all(row is not None and row.compress for row in rows)
        gzip = is_compressible and not is_head and accepts_gzip(request.headers.get("Accept-Encoding", ""))
        if now is None and (is_finite or not is_head):
            now = _now(using)
        # Nothing here may keep the request: a stream stays for hours.
        self._using = using
        self._options: dict[str, Any] = {
            "channels": names,
            "now": now,
            "resume": seen or request.GET.get("last_event_id"),
            "replay": not seen and request.GET.get("replay") == "1",
            "earliest": request.GET.get("from") == "earliest",
            "follow": not is_finite,
            "envelope": request.GET.get("envelope") == "1",
            "gzip": gzip,
            "allowed": allowed,
            "checked": moment() if checked is None else checked,
            "user": user,
            "address": address,
        }
        self._handoff = None if is_head else getattr(request, "scope", {}).get(HANDOFF)
        self._encoding = "gzip" if gzip else "identity"
        self._stream = _nothing() if is_head else self._chunks()
        super().__init__(
            self._stream,
            content_type=wire.CONTENT_TYPE,
            headers={
                "Cache-Control": "no-cache, no-transform",
                "X-Accel-Buffering": "no",
                "X-Content-Type-Options": "nosniff",
                # GZipMiddleware leaves a response alone that has an encoding. On Django 5.2 it would make one gzip
                # member of each event, of which browsers read the first.
                "Content-Encoding": self._encoding,
                KEEPALIVE_HEADER: f"{settings.KEEPALIVE:g}",
            },
        )
        if now is not None:
            self[CURSOR_HEADER] = str(now)
        if is_compressible:
            patch_vary_headers(self, ("Accept-Encoding",))

    @property
    def streaming_content(self) -> Any:
        """The body, for a middleware to wrap."""
        return super().streaming_content

    @streaming_content.setter
    def streaming_content(self, value: Any) -> None:
        self._is_wrapped = value is not self._stream
        StreamingHttpResponse.streaming_content.fset(self, value)  # type: ignore[union-attr]

    def __aiter__(self) -> AsyncIterator[bytes]:
        """
        The chunks, without a generator of Django's around them where nothing wrapped them.

        Django closes what it iterates; a generator in between would leave ours to the garbage collector, and the
        stream in the hub until then.
        """
        if self._stream is None:
            return super().__aiter__()
        if self._is_wrapped or self.headers.get("Content-Encoding") != self._encoding:
            if self._handoff is not None:
                say_once(logger, "a middleware changes the body of streams, which therefore stay in the response lane")
            return self._wrapped(self._stream)
        return self._stream if self._handoff is None else self._hand_off(self._handoff)

    async def _hand_off(self, handoff: Any) -> AsyncGenerator[bytes, None]:
        """Give the connection to the application around Django (`events.asgi`), and end: the body is its part."""
        handoff.take(self._using, self._options)
        return
        yield b""  # type: ignore[unreachable]  # makes it a generator, which Django iterates and closes

    async def _wrapped(self, stream: AsyncGenerator[bytes, None]) -> AsyncGenerator[bytes, None]:
        """What a middleware made of the stream, closing the stream itself at the end."""
        async with aclosing(stream):
            async for part in super().__aiter__():
                yield part

    async def _chunks(self) -> AsyncGenerator[bytes, None]:
        let_go()
        stream = ResponseStream(get_hub(self._using), **self._options)
        try:
            async with aclosing(stream.chunks()) as chunks:
                async for chunk in chunks:
                    yield chunk
        except Exception:
            # Raised further, Django would neither end the response nor send request_finished.
            logger.exception("a stream ended by a fault: channels=%s", ",".join(stream.channels))


class ResponseStream(Stream):
    """A stream whose bytes somebody iterates over."""

    _task: asyncio.Task[Any]

    __slots__ = ("_task",)

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        """
        The bytes of the response, as they come.

        Never ends by itself but when rights are gone, a limit is reached or the hub stops. Closing it takes the stream
        out of the hub.
        """
        loop = asyncio.get_running_loop()
        writes = 0
        try:
            self.open()
            while not self.is_over:
                chunk = self.poll()
                if chunk is None:
                    chunk = await self.advance()
                elif not chunk:
                    self._waiter = loop.create_future()
                    await self._waiter
                    continue
                if chunk:
                    # Who iterates has it in hand until they ask for more.
                    self._task = cast("asyncio.Task[Any]", asyncio.current_task())
                    self._waits_since = self.hub.clock
                    yield chunk
                    self._waits_since = None
                    writes += 1
                    if writes % WRITES_PER_TURN == 0:
                        # A send that never waits would starve the loop, and never see that the client has gone.
                        await asyncio.sleep(0)
        finally:
            self.close()

    def give_up(self) -> None:
        """Cancel whoever waits for the client: Django takes that for a client that has gone, and ends the response."""
        if self._waits_since is not None:
            self._task.cancel()


def _now(using: str) -> Cursor | None:
    """
    The log's head, before the headers leave: a client that has seen those takes its stream for open.

    On the event loop it is known where the hub follows the log already; the app's own view waits for that. On a thread,
    for a view that is not async, the log is asked. None where neither can say: then the first bytes wait for the hub.
    """
    try:
        hub = get_hub(using)
    except RuntimeError:
        try:
            return event_backends[using].head()
        except BackendUnavailable:
            return None
    hub.start()
    return hub.now()


async def _nothing() -> AsyncGenerator[bytes, None]:
    """The body of an answer to HEAD."""
    yield b""

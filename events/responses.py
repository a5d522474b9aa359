"""The response lane: a stream as an async `StreamingHttpResponse`, under any ASGI server, with no set-up."""

from __future__ import annotations

import logging
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

from asgiref.sync import SyncToAsync
from django.core.handlers.wsgi import WSGIRequest
from django.db import connections
from django.http import HttpRequest, StreamingHttpResponse

from . import wire
from .conf import settings
from .exceptions import BackendUnavailable, InvalidChannelName
from .hub import Stream, get_hub
from .registry import event_backends

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterable

    from .wire import Cursor

logger = logging.getLogger("events.responses")

NOT_UNDER_WSGI = (
    "A stream needs an ASGI server: under WSGI it would hold a worker for as long as the client stays.\n"
    "Serve the site's asgi.py with daphne, uvicorn, hypercorn or granian. For the development server, put 'daphne' "
    "first in INSTALLED_APPS and set ASGI_APPLICATION.\n"
)


class EventStreamResponse(StreamingHttpResponse):
    """
    A stream of the events of `channels`, for a view of one's own.

    The view decides who may read: nothing is checked here. The client's `Last-Event-ID` header, or its
    `last_event_id` parameter, says where to go on, unless `last_event_id` is given; `replay=1`, `envelope=1` and
    `from=earliest` work as on the app's own stream. `allowed`, an async function, is asked again whenever the
    configured channels change, and ends the stream when it returns False.

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
        allowed: Callable[[], Awaitable[bool]] | None = None,
    ) -> None:
        names = list(dict.fromkeys(wire.validate_channel_name(name) for name in channels))
        if not 1 <= len(names) <= settings.MAX_CHANNELS_PER_STREAM:
            raise InvalidChannelName(
                f"a stream follows 1 to {settings.MAX_CHANNELS_PER_STREAM} channels "
                f"(EVENTS['MAX_CHANNELS_PER_STREAM']), not {len(names)}"
            )
        if isinstance(request, WSGIRequest):
            self._stream: AsyncGenerator[bytes, None] | None = None
            super().__init__([NOT_UNDER_WSGI], status=501, content_type="text/plain; charset=utf-8")
            return
        self._request = request
        self._channels = names
        # A client that has seen an event says so in the header.
        seen = last_event_id or request.headers.get("Last-Event-ID")
        self._resume = seen or request.GET.get("last_event_id")
        self._replay = not seen and request.GET.get("replay") == "1"
        self._using = using
        self._allowed = allowed
        is_head = request.method == "HEAD"
        self._now = None if is_head else _now(using)
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
                "Content-Encoding": "identity",
            },
        )

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
        return self._wrapped(self._stream) if self._is_wrapped else self._stream

    async def _wrapped(self, stream: AsyncGenerator[bytes, None]) -> AsyncGenerator[bytes, None]:
        """What a middleware made of the stream, closing the stream itself at the end."""
        async with aclosing(stream):
            async for part in super().__aiter__():
                yield part

    async def _chunks(self) -> AsyncGenerator[bytes, None]:
        request = self._request
        _let_go()
        stream = Stream(
            get_hub(self._using),
            self._channels,
            now=self._now,
            resume=self._resume,
            replay=self._replay,
            earliest=request.GET.get("from") == "earliest",
            envelope=request.GET.get("envelope") == "1",
            allowed=self._allowed and _then_let_go(self._allowed),
        )
        try:
            async with aclosing(stream.chunks()) as chunks:
                async for chunk in chunks:
                    yield chunk
        except Exception:
            # Raised further, Django would neither end the response nor send request_finished.
            logger.exception("a stream ended by a fault: channels=%s", ",".join(self._channels))


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


def _then_let_go(allowed: Callable[[], Awaitable[bool]]) -> Callable[[], Awaitable[bool]]:
    async def ask() -> bool:
        try:
            return await allowed()
        finally:
            _let_go()

    return ask


def _let_go() -> None:
    """
    End the thread that Django keeps for the request, and with it the database connections that were opened on it.

    Admitting the request is over; a stream that kept both for hours would cost each client a thread and a connection.
    What the response does later on such a thread (closing, asking for rights again) gets a new one.

    `SyncToAsync` has no method for this. These two attributes are what `ThreadSensitiveContext` itself does it with;
    where they are not, or the request has no thread of its own (a test's client), nothing happens.
    """
    try:
        executor = SyncToAsync.context_to_thread_executor.pop(SyncToAsync.thread_sensitive_context.get())
    except (AttributeError, LookupError):
        return
    executor.submit(_close_connections)
    # The thread ends when it has done that; nobody waits for it.
    executor.shutdown(wait=False)


def _close_connections() -> None:
    for connection in connections.all(initialized_only=True):
        if not connection.in_atomic_block:
            connection.close()

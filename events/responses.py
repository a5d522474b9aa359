"""The response lane: a stream as an async `StreamingHttpResponse`, under any ASGI server, with no set-up."""

from __future__ import annotations

import logging
from contextlib import aclosing
from typing import Any
from typing import TYPE_CHECKING

from asgiref.sync import sync_to_async
from django.core.handlers.wsgi import WSGIRequest
from django.db import connections
from django.http import HttpRequest, StreamingHttpResponse

from . import wire
from .conf import settings
from .exceptions import InvalidChannelName
from .hub import Stream, get_hub

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterable

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
    `last_event_id` parameter, says where to go on, unless `last_event_id` is given; `envelope=1` and `from=earliest`
    work as on the app's own stream. `allowed`, an async function, is asked again whenever the configured channels
    change, and ends the stream when it returns False.

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
        self._resume = last_event_id or request.headers.get("Last-Event-ID") or request.GET.get("last_event_id")
        self._using = using
        self._allowed = allowed
        self._stream = _nothing() if request.method == "HEAD" else self._chunks()
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
        if hasattr(request, "_cached_user") or hasattr(request, "_acached_user") or _session_was_read(request):
            await sync_to_async(_close_connections)()
        stream = Stream(
            get_hub(self._using),
            self._channels,
            resume=self._resume,
            earliest=request.GET.get("from") == "earliest",
            envelope=request.GET.get("envelope") == "1",
            allowed=self._allowed,
        )
        try:
            async with aclosing(stream.chunks()) as chunks:
                async for chunk in chunks:
                    yield chunk
        except Exception:
            # Raised further, Django would neither end the response nor send request_finished.
            logger.exception("a stream ended by a fault: channels=%s", ",".join(self._channels))


async def _nothing() -> AsyncGenerator[bytes, None]:
    """The body of an answer to HEAD."""
    for chunk in list[bytes]():
        yield chunk


def _session_was_read(request: HttpRequest) -> bool:
    session = getattr(request, "session", None)
    return session is not None and session.accessed


def _close_connections() -> None:
    """Let go of the connections that admitting the request opened: they would be held for as long as it streams."""
    for connection in connections.all(initialized_only=True):
        if not connection.in_atomic_block:
            connection.close()

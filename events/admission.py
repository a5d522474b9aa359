"""Django's handler, which admits streams in one trip to the request's thread, and bounds what is sent to publish."""

from __future__ import annotations

import asyncio
import logging
from functools import cached_property
from typing import TYPE_CHECKING, Any

from asgiref.sync import sync_to_async
from django.conf import settings
from django.core.exceptions import BadRequest
from django.core.handlers.asgi import ASGIHandler, get_script_prefix
from django.core.handlers.base import BaseHandler
from django.http import HttpResponseBadRequest
from django.urls import Resolver404, resolve
from django.utils.module_loading import import_string

from . import bodies, wire

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from django.http import HttpRequest, HttpResponseBase

    Message = Mapping[str, Any]
    Receive = Callable[[], Awaitable[Message]]
    Send = Callable[[Message], Awaitable[None]]


logger = logging.getLogger("events.admission")


class AdmittingHandler(ASGIHandler):
    """
    Django's handler. For a request that asks for a stream the middleware runs in its synchronous form.

    Most middleware is not async itself. Django takes each of its methods to the request's thread and back: fourteen
    trips for that of a new project, which is most of what it costs to open a stream, and all of it when a server was
    restarted and its clients come back. In one go, as under WSGI, it is one trip: the same middleware in the same
    order, in instances of its own, made when the first stream is asked for.

    Where one of them works asynchronously only, streams are admitted as everything else.

    Django also takes the whole of a body, however large, into a temporary file before it looks at anything else. What
    is sent to publish ends for it where it is too large, and is not read at all where the headers say that much.
    """

    async def handle(self, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        """Serve a request."""
        if scope["method"] == "POST" and "/publish/" in scope["path"] and _leads_to_bounded(scope):
            receive = _Bounded(scope, receive)
        await super().handle(scope, receive, send)

    def create_request(self, scope: Mapping[str, Any], body_file: Any) -> Any:
        """
        Make the request. Returns it and None, or None and what is answered in its place.

        400 where Django cannot read a `Content-Type` (`charset*=bogus''x`, for one). By itself it raises: a 500 before
        any middleware, which a client brings about as it likes.
        """
        try:
            return super().create_request(scope, body_file)
        except (BadRequest, ValueError) as error:
            # Django 6.1 has an error of its own for it, which nobody catches there either.
            logger.warning("a request cannot be read: %s", wire.shown(str(error)))
            return None, HttpResponseBadRequest()

    async def get_response_async(self, request: HttpRequest) -> HttpResponseBase:
        """Return the response."""
        if wire.CONTENT_TYPE in request.headers.get("Accept", "") and (chain := self._synchronous) is not None:
            return await sync_to_async(chain.get_response, thread_sensitive=True)(request)
        return await super().get_response_async(request)

    @cached_property
    def _synchronous(self) -> BaseHandler | None:
        if not all(getattr(import_string(path), "sync_capable", True) for path in settings.MIDDLEWARE):
            return None
        handler = BaseHandler()
        handler.load_middleware()
        return handler


def _leads_to_bounded(scope: Mapping[str, Any]) -> bool:
    """Whether the request's view is one of `events.bodies.bounded`, as far as `ROOT_URLCONF` says."""
    try:
        return bodies.is_bounded(resolve(scope["path"].removeprefix(get_script_prefix(scope))).func)
    except Resolver404:
        return False


class _Bounded:
    """A server's `receive`, whose body ends one byte after the limit, or at once where the headers refuse it."""

    def __init__(self, scope: Mapping[str, Any], receive: Receive) -> None:
        self._receive = receive
        self._is_cut = False
        #: Bytes that may come yet.
        self._left = bodies.max_bytes() + 1 if _is_welcome(scope) else 0

    async def __call__(self) -> Message:
        """Return the next message."""
        if self._is_cut:
            # Django asks whether the client has gone, until it has answered. What the client sends stays with the
            # server, which takes no more of it.
            await asyncio.get_running_loop().create_future()
        message = await self._receive() if self._left else {}
        body = message.get("body", b"")
        self._left -= len(body)
        if self._left > 0:
            return message
        self._is_cut = True
        return {"type": "http.request", "body": body[: len(body) + self._left], "more_body": False}


def _is_welcome(scope: Mapping[str, Any]) -> bool:
    """Whether the headers leave it open that the body can be taken."""
    headers: dict[str, str] = {}
    for name, value in scope["headers"]:
        # As Django reads them: what comes twice is joined.
        key, text = name.decode("latin-1"), value.decode("latin-1")
        headers[key] = f"{headers[key]},{text}" if key in headers else text
    try:
        bodies.is_json(headers)
    except bodies.RefusedError:
        return False
    return True

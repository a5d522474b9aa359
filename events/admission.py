"""Django's handler, which admits streams in one trip to the request's thread."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

from asgiref.sync import sync_to_async
from django.conf import settings
from django.core.handlers.asgi import ASGIHandler
from django.core.handlers.base import BaseHandler
from django.utils.module_loading import import_string

from . import wire

if TYPE_CHECKING:
    from django.http import HttpRequest, HttpResponseBase


class AdmittingHandler(ASGIHandler):
    """
    Django's handler. For a request that asks for a stream the middleware runs in its synchronous form.

    Most middleware is not async itself. Django takes each of its methods to the request's thread and back: fourteen
    trips for that of a new project, which is most of what it costs to open a stream, and all of it when a server was
    restarted and its clients come back. In one go, as under WSGI, it is one trip: the same middleware in the same
    order, in instances of its own, made when the first stream is asked for.

    Where one of them works asynchronously only, streams are admitted as everything else.
    """

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

"""
What pages of other origins may do: the headers that the setting `CORS_ORIGINS` asks for.

https://fetch.spec.whatwg.org/#http-cors-protocol

These headers protect nothing by themselves: a browser reads them, and shows a page an answer or does not. Who may read
and publish is decided elsewhere, and not by the origin.
"""

from __future__ import annotations

from functools import lru_cache, wraps
from typing import TYPE_CHECKING, Any, TypeVar, cast

from asgiref.sync import iscoroutinefunction
from django.conf import settings as django_settings
from django.http import HttpResponse
from django.utils.cache import patch_vary_headers
from django.utils.module_loading import import_string

from .conf import settings

if TYPE_CHECKING:
    from collections.abc import Callable

    from django.http import HttpRequest, HttpResponseBase

View = TypeVar("View", bound="Callable[..., Any]")

#: The request headers that pages of every allowed origin may set. A browser's own EventSource may without being asked;
#: these are for clients that are written with `fetch()`.
HEADERS = ("Accept", "Cache-Control", "Content-Type", "Idempotency-Key", "Last-Event-ID")
#: The headers of answers that programs on such pages may read, besides those that they always may.
EXPOSED = ("Retry-After", "Events-Cursor", "Events-Keepalive", "Events-Visitor")
#: Seconds for which a browser may keep the answer to a preflight: as long as Chromium keeps one at most.
MAX_AGE = 7200


def cors(*methods: str) -> Callable[[View], View]:
    """
    Decorate a view, sync or async, whose answers pages of `CORS_ORIGINS` may read; `methods` are what it answers.

    Every answer of the view then depends on `Origin`, and says so. An origin in the list is named, and may send
    cookies; any other one is let in by "*", without. A preflight is answered in the view's place. An exception that
    leaves the view is Django's to answer, without these headers.

    Nothing is done where the list is empty, or where django-cors-headers is among the middleware: it answers then.
    """

    def decorate(view: View) -> View:
        if iscoroutinefunction(view):

            @wraps(view)
            async def answer_async(request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponseBase:
                allowed = _allowed(request)
                if (response := _preflight(request, allowed, methods)) is None:
                    response = await view(request, *args, **kwargs)
                return _with_headers(response, allowed)

            return cast("View", answer_async)

        @wraps(view)
        def answer(request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponseBase:
            allowed = _allowed(request)
            if (response := _preflight(request, allowed, methods)) is None:
                response = view(request, *args, **kwargs)
            return _with_headers(response, allowed)

        return cast("View", answer)

    return decorate


def _allowed(request: HttpRequest) -> str | None:
    """The origin that the answer names, "*", or "" where it names none. None where no answer is to depend on it."""
    origins = settings.CORS_ORIGINS
    if not origins or is_answered_elsewhere(tuple(django_settings.MIDDLEWARE)):
        return None
    origin = request.headers.get("Origin", "")
    # Never what was sent unless it is in the list, letter by letter: a browser compares so, too.
    if origin in origins:
        return origin
    return "*" if origin and "*" in origins else ""


@lru_cache(maxsize=1)
def is_answered_elsewhere(middleware: tuple[str, ...]) -> bool:
    """Whether django-cors-headers, or a subclass of its middleware, is among these. By name: it need not be there."""
    return any(
        f"{ancestor.__module__}.{ancestor.__qualname__}" == "corsheaders.middleware.CorsMiddleware"
        for path in middleware
        # A middleware that is a function has none.
        for ancestor in getattr(import_string(path), "__mro__", ())
    )


def _preflight(request: HttpRequest, allowed: str | None, methods: tuple[str, ...]) -> HttpResponseBase | None:
    """
    The answer to a browser that asks whether a page may send such a request. None where it asks nothing like it.

    It says the same whatever is asked about: what is not in it, the browser does not send.
    """
    if not allowed or request.method != "OPTIONS" or "Access-Control-Request-Method" not in request.headers:
        return None
    # What says who somebody is goes with cookies: "*" is for what everybody may do.
    who = () if allowed == "*" else ("Authorization", _csrf_header())
    response = HttpResponse(
        status=204,
        headers={
            "Access-Control-Allow-Methods": ", ".join(methods),
            "Access-Control-Allow-Headers": ", ".join([*HEADERS, *who]),
            "Access-Control-Max-Age": str(MAX_AGE),
        },
    )
    patch_vary_headers(response, ("Origin", "Access-Control-Request-Method", "Access-Control-Request-Headers"))
    return response


def _csrf_header() -> str:
    """The header with the CSRF token, from how `CSRF_HEADER_NAME` writes it: `HTTP_X_CSRFTOKEN`."""
    return django_settings.CSRF_HEADER_NAME.removeprefix("HTTP_").replace("_", "-")


def _with_headers(response: HttpResponseBase, allowed: str | None) -> HttpResponseBase:
    """The view's answer, or that to a preflight, with what a browser looks at."""
    if allowed is None:
        return response
    patch_vary_headers(response, ("Origin",))
    if allowed:
        response["Access-Control-Allow-Origin"] = allowed
        response["Access-Control-Expose-Headers"] = ", ".join(EXPOSED)
        if allowed != "*":
            response["Access-Control-Allow-Credentials"] = "true"
    return response

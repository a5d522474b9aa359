"""sse-starlette's site: one queue per stream, as its documentation shows it, nothing durable.

The event object is made once and shared, which is the kindest way to use the library.
"""

from __future__ import annotations

import asyncio
import gc
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

_sse = import_module("sse_starlette.sse")
_event = import_module("sse_starlette.event")
_responses = import_module("starlette.responses")
_routing = import_module("starlette.routing")
_applications = import_module("starlette.applications")

queues: set[asyncio.Queue[Any]] = set()


async def stream(request: Any) -> Any:
    """One client's stream."""

    async def body() -> AsyncIterator[Any]:
        queue: asyncio.Queue[Any] = asyncio.Queue()
        queues.add(queue)
        try:
            while True:
                yield await queue.get()
        finally:
            queues.discard(queue)

    return _sse.EventSourceResponse(body())


async def publish(request: Any) -> Any:
    """Give the body's lines to every stream, each as an event."""
    for text in (await request.body()).decode().split("\n"):
        event = _event.ServerSentEvent(data=text)
        for queue in queues:
            queue.put_nowait(event)
    return _responses.PlainTextResponse("ok")


async def collect(request: Any) -> Any:
    """Collect garbage, so that memory is read without it."""
    return _responses.PlainTextResponse(str(gc.collect()))


application = _applications.Starlette(
    routes=[
        _routing.Route("/events", stream),
        _routing.Route("/publish", publish, methods=["POST"]),
        _routing.Route("/burst", publish, methods=["POST"]),
        _routing.Route("/collect", collect),
    ]
)

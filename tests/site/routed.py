"""The site behind a router and a middleware of ASGI, as sites with WebSockets and monitoring have them."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from .asgi import application as site

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    Message = Mapping[str, Any]
    Receive = Callable[[], Awaitable[Message]]
    Send = Callable[[Message], Awaitable[None]]

# What the `ProtocolTypeRouter` of channels does, which the tests do without.
by_type = {"http": site}


async def application(scope: dict[str, Any], receive: Receive, send: Send) -> None:
    """Hand a connection to whoever knows its protocol."""
    if scope["type"] not in by_type:
        raise ValueError(f"No application configured for scope type {scope['type']!r}")
    await by_type[scope["type"]](scope, receive, send)


async def watched(scope: dict[str, Any], receive: Receive, send: Send) -> None:
    """The same, with a `send` that is not the server's own, and waits under a time limit."""

    async def send_in_time(message: Message) -> None:
        task = asyncio.current_task()
        await asyncio.sleep(0)
        if asyncio.current_task() is not task:
            # What anyio says of a time limit that is left in another task than it was entered in.
            raise RuntimeError("half of it was done in another task")
        await asyncio.wait_for(send(message), 60)

    await site(scope, receive, send_in_time)

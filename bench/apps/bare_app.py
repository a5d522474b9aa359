"""The floor: an ASGI app without any library, one queue per stream, each event encoded once for all.

What a stream costs here is uvicorn and one task per stream; no response under uvicorn can cost less without
coalescing or leaving the response's task.
"""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

queues: set[asyncio.Queue[bytes]] = set()


async def _body(receive: Receive) -> str:
    parts = bytearray()
    while True:
        message = await receive()
        parts += message.get("body", b"")
        if not message.get("more_body"):
            return parts.decode()


async def _answer(send: Send, text: str) -> None:
    headers = [(b"content-length", str(len(text)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": text.encode()})


async def _stream(receive: Receive, send: Send) -> None:
    queue: asyncio.Queue[bytes] = asyncio.Queue()
    queues.add(queue)

    async def write() -> None:
        headers = [(b"content-type", b"text/event-stream")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b": open\n", "more_body": True})
        while True:
            await send({"type": "http.response.body", "body": await queue.get(), "more_body": True})

    writer = asyncio.ensure_future(write())
    try:
        while (await receive())["type"] != "http.disconnect":
            pass
    finally:
        writer.cancel()
        queues.discard(queue)


async def application(scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
    """The ASGI entry point."""
    if scope["path"] == "/events":
        await _stream(receive, send)
    elif scope["path"] in ("/publish", "/burst"):
        for text in (await _body(receive)).split("\n"):
            frame = f"data: {text}\n\n".encode()
            for queue in queues:
                queue.put_nowait(frame)
        await _answer(send, "ok")
    else:
        await _answer(send, str(gc.collect()))

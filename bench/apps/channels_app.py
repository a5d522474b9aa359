"""Channels: an SSE stream that follows one group. BENCH_LAYER: the layer's dotted path; BENCH_REDIS_URL, if it has one.

Not a consumer class but the layer's own calls: nothing stands between `receive()` and the bytes.
"""

from __future__ import annotations

import asyncio
import gc
import os
from collections.abc import Awaitable, Callable, MutableMapping
from importlib import import_module
from typing import Any

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

GROUP = "bench"


def make_layer() -> Any:
    """The channel layer, with its defaults."""
    module, _, name = os.environ["BENCH_LAYER"].rpartition(".")
    url = os.environ.get("BENCH_REDIS_URL")
    return getattr(import_module(module), name)(**({"hosts": [url]} if url else {}))


layer = make_layer()


async def _stream(receive: Receive, send: Send) -> None:
    channel = await layer.new_channel()
    await layer.group_add(GROUP, channel)

    async def write() -> None:
        headers = [(b"content-type", b"text/event-stream")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b": open\n", "more_body": True})
        while True:
            message = await layer.receive(channel)
            frame = f"data: {message['text']}\n\n".encode()
            await send({"type": "http.response.body", "body": frame, "more_body": True})

    writer = asyncio.ensure_future(write())
    try:
        while (await receive())["type"] != "http.disconnect":
            pass
    finally:
        writer.cancel()
        await layer.group_discard(GROUP, channel)


async def _publish(receive: Receive) -> None:
    body = bytearray()
    more = True
    while more:
        message = await receive()
        body += message.get("body", b"")
        more = message.get("more_body", False)
    for text in body.decode().split("\n"):
        await layer.group_send(GROUP, {"type": "bench.message", "text": text})


async def application(scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
    """The ASGI entry point."""
    if scope["path"] == "/events":
        await _stream(receive, send)
        return
    if scope["path"] in ("/publish", "/burst"):
        await _publish(receive)
        text = b"ok"
    else:
        text = str(gc.collect()).encode()
    headers = [(b"content-length", str(len(text)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": text})

"""Clients that are not ours, which read ten events, each before the next is published."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import httpx
from httpx_sse import aconnect_sse

from .plugins import require_program
from .servers import GUARD, stream_path

if TYPE_CHECKING:
    from .servers import Server

EVENTS = 10
#: Less than the seconds of a keep-alive, which would flush what is buffered.
AT_ONCE = 10


async def read_by_curl(server: Server, port: int, name: str) -> bytes:
    """With `curl --compressed`; `port` is the server's, or of what stands before it. The head of the answer."""
    url = f"http://127.0.0.1:{port}{stream_path(name)}"
    curl = await asyncio.create_subprocess_exec(
        *(require_program("curl"), "--silent", "--show-error", "--no-buffer", "--compressed", "--include", url),
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        assert curl.stdout is not None
        head = await asyncio.wait_for(curl.stdout.readuntil(b"\r\n\r\n"), GUARD)
        assert b" 200 " in head.splitlines()[0]
        assert b"text/event-stream" in head
        first = await asyncio.wait_for(curl.stdout.readuntil(b": stream\n"), AT_ONCE)
        assert first.startswith(b"retry: ")
        for number in range(EVENTS):
            cursor = await server.site.apublish(name, f"event {number}")
            block = await asyncio.wait_for(curl.stdout.readuntil(b"\n\n"), AT_ONCE)
            assert block == f"id: {cursor}\ndata: event {number}\n\n".encode()
        return head
    finally:
        curl.kill()
        await asyncio.wait_for(curl.communicate(), GUARD)


async def read_by_httpx(server: Server, name: str) -> httpx.Headers:
    """With httpx, which asks for every compression it knows. The headers of the answer."""
    async with (
        httpx.AsyncClient(base_url=f"http://127.0.0.1:{server.port}", timeout=AT_ONCE, trust_env=False) as client,
        aconnect_sse(client, "GET", stream_path(name)) as source,
    ):
        assert "gzip" in source.response.request.headers["Accept-Encoding"]
        events = source.aiter_sse()
        for number in range(EVENTS):
            cursor = await server.site.apublish(name, f"event {number}")
            event = await asyncio.wait_for(anext(events), AT_ONCE)
            assert (event.event, event.data, event.id) == ("message", f"event {number}", cursor)
        return source.response.headers

"""The proxy that other tests rely on, before a real server."""

from __future__ import annotations

import asyncio
import http.client
import time
from contextlib import asynccontextmanager, closing, suppress
from typing import TYPE_CHECKING

import pytest

from .proxy import Body, Proxy
from .servers import GUARD, RawStream, Server, Site, stream_path

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with closing(Site(tmp_path_factory.mktemp("proxied"))) as site:
        yield site.start("uvicorn")


@pytest.fixture
def proxy(server: Server) -> Iterator[Proxy]:
    with Proxy(server.port) as proxy:
        yield proxy


@asynccontextmanager
async def stream_through(proxy: Proxy, name: str, *, is_begun: bool = True) -> AsyncIterator[RawStream]:
    stream = await RawStream.open(proxy.port, stream_path(name))
    try:
        yield await stream.begin() if is_begun else stream
    finally:
        stream.abort()
        await asyncio.sleep(0)


async def seen(proxy: Proxy, condition, what: str) -> None:
    await asyncio.to_thread(proxy.wait_until, condition, what)


async def test_streams_and_requests_are_counted_as_they_come_and_go(server: Server, proxy: Proxy, name: str) -> None:
    """Two streams, one page on a connection that is kept, and each is known with path and headers."""
    async with stream_through(proxy, name) as first:
        async with stream_through(proxy, name):
            assert len(proxy.streams) == len(proxy.open_streams) == 2
            assert proxy.open_connections == 2
            cursor = await server.site.apublish(name, "passes")
            assert (await first.next()).id == cursor
        await seen(proxy, lambda: len(proxy.open_streams) == 1, "one has gone")
    await seen(proxy, lambda: not proxy.open_connections, "both have gone")
    assert len(proxy.streams) == 2
    assert proxy.open_streams == []
    request = proxy.streams[0]
    assert (request.method, request.path) == ("GET", stream_path(name))
    assert request.headers["accept"] == "text/event-stream"
    assert request.status == 200

    def keep() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", proxy.port, timeout=GUARD)
        for path in ("/blank/", "/page/", "/static/events/live.css", "/nothing/"):
            connection.request("GET", path)
            connection.getresponse().read()
        connection.request("HEAD", stream_path(name))
        connection.getresponse().read()
        connection.request("POST", "/blank/", b"a body")
        connection.getresponse().read()
        connection.close()

    await asyncio.to_thread(keep)
    await seen(proxy, lambda: not proxy.open_connections, "it has gone")
    assert proxy.connections == 3
    assert [(request.method, request.path, request.status) for request in proxy.requests[2:]] == [
        ("GET", "/blank/", 200),
        ("GET", "/page/", 200),
        ("GET", "/static/events/live.css", 200),
        ("GET", "/nothing/", 404),
        ("HEAD", stream_path(name), 200),
        ("POST", "/blank/", 403),
    ]
    assert all(request.is_over for request in proxy.requests)


async def test_refused_streams_never_reach_the_server_and_everything_else_does(
    server: Server, proxy: Proxy, name: str
) -> None:
    """A status, headers and a body of the test's own, until it says otherwise; also while there is no server."""
    proxy.refuse(503, {"Retry-After": "7"}, b"come back later")
    async with stream_through(proxy, name, is_begun=False) as refused:
        assert (refused.status, refused.headers["retry-after"]) == (503, "7")
        assert await refused.rest() == b"come back later"
    assert proxy.streams[0].is_refused
    proxy.refuse(200, {"Content-Type": "text/html"}, b"<!doctype html>")
    async with stream_through(proxy, name, is_begun=False) as page:
        assert (page.status, page.headers["content-type"]) == (200, "text/html")
        assert await page.rest() == b"<!doctype html>"
    proxy.refuse(204)
    async with stream_through(proxy, name, is_begun=False) as nothing:
        assert nothing.status == 204
        assert "content-length" not in nothing.headers
    async with answered(proxy, "/blank/") as blank:
        assert blank.status == 200
    proxy.refuse(500, path="/blank/")
    async with answered(proxy, "/blank/") as blank:
        assert blank.status == 500
    proxy.accept()
    async with stream_through(proxy, name):
        assert [request.status for request in proxy.streams] == [503, 200, 204, 200]
    with Proxy(1) as nobody:
        nobody.refuse(429)
        async with stream_through(nobody, name, is_begun=False) as alone:
            assert alone.status == 429
        nobody.heal()
        with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
            await RawStream.open(nobody.port, stream_path(name))


@asynccontextmanager
async def answered(proxy: Proxy, path: str) -> AsyncIterator[RawStream]:
    stream = await RawStream.open(proxy.port, path)
    try:
        await stream.rest()
        yield stream
    finally:
        stream.abort()
        await asyncio.sleep(0)


async def test_a_stalled_stream_stays_open_and_says_nothing(server: Server, proxy: Proxy, name: str) -> None:
    """What was open is silent for good; a new one works at once."""
    async with stream_through(proxy, name) as stalled:
        proxy.stall()
        async with stream_through(proxy, name) as other:
            cursor = await server.site.apublish(name, "for the other")
            assert (await other.next()).id == cursor
            with pytest.raises(asyncio.TimeoutError):
                await stalled.read(guard=0.2)
            proxy.cut()
            await server.site.apublish(name, "for nobody")
            with pytest.raises(asyncio.TimeoutError):
                await other.read(guard=0.2)
            proxy.heal()
            async with stream_through(proxy, name):
                pass
        assert len(proxy.streams) == 3


async def test_streams_are_closed_in_the_middle(server: Server, proxy: Proxy, name: str) -> None:
    """With an end that HTTP knows to be none, and with a reset; a page's connection is left alone."""
    async with stream_through(proxy, name) as stream:
        proxy.close_streams()
        with pytest.raises(asyncio.IncompleteReadError):
            await stream.rest()
    async with stream_through(proxy, name) as stream:
        proxy.close_streams(reset=True)
        with pytest.raises((ConnectionResetError, asyncio.IncompleteReadError)):
            await stream.rest()
        assert proxy.open_streams == []


@pytest.mark.parametrize("most", [0, 1, 20])
async def test_an_answer_breaks_off_after_so_many_bytes(server: Server, proxy: Proxy, name: str, most: int) -> None:
    """The head comes whole, and behind it not a byte more."""
    proxy.break_after(most)
    async with stream_through(proxy, name, is_begun=False) as stream:
        assert stream.status == 200
        assert len(await asyncio.wait_for(stream.reader.read(-1), GUARD)) == most
    proxy.break_after(None)
    async with stream_through(proxy, name):
        pass


async def test_answers_are_held_back(server: Server, proxy: Proxy, name: str) -> None:
    """Not a byte before its time, and all of them then. Pages are not."""
    proxy.delay(0.4)
    async with answered(proxy, "/blank/"):
        pass
    begun = time.monotonic()
    async with stream_through(proxy, name):
        assert time.monotonic() - begun >= 0.4
    assert proxy.requests[0].delay == 0


async def test_answers_that_are_held_back_can_be_let_go(server: Server, proxy: Proxy, name: str) -> None:
    """Before their time; those that come later are held back again."""
    proxy.delay(10 * GUARD)
    for count in (1, 2):
        opening = asyncio.ensure_future(RawStream.open(proxy.port, stream_path(name)))
        await seen(proxy, lambda count=count: len(proxy.streams) == count, "it has asked")
        assert not opening.done()
        proxy.release()
        stream = await asyncio.wait_for(opening, GUARD)
        stream.abort()


async def test_what_is_not_http_passes_as_it_is() -> None:
    """Who speaks first does not matter, nor what is said."""

    done = asyncio.Event()

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"\x00hello\r\n\r\n")
        while data := await reader.read(100):
            writer.write(data.upper())
        writer.close()
        done.set()

    async with await asyncio.start_server(talk, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        with Proxy(port) as proxy:
            reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
            assert await asyncio.wait_for(reader.readexactly(10), GUARD) == b"\x00hello\r\n\r\n"
            writer.write(b"*1\r\n$4\r\nping\r\n")
            assert await asyncio.wait_for(reader.readexactly(14), GUARD) == b"*1\r\n$4\r\nPING\r\n"
            writer.close()
            with suppress(ConnectionError):
                await writer.wait_closed()
            await asyncio.wait_for(done.wait(), GUARD)
            assert proxy.requests == []


BODIES = [
    ({"content-length": "5"}, b"abcde"),
    ({"transfer-encoding": "chunked"}, b"5\r\nabcde\r\nA;x=y\r\n\r\n0\r\n\r\n234\r\n0\r\n\r\n"),
    ({"transfer-encoding": "chunked"}, b"1\r\n0\r\n0\r\nTrailer: 1\r\n\r\n"),
]


@pytest.mark.parametrize("headers, body", BODIES)
def test_the_end_of_a_body_is_found_wherever_it_is_cut(headers: dict[str, str], body: bytes) -> None:
    """Cut in two at each place, and into single bytes: what follows is never taken for a part of it."""
    for cut in range(len(body)):
        found = Body(200, headers, is_empty=False)
        assert found.feed(body[:cut]) == cut
        assert not found.is_over
        assert found.feed(body[cut:] + b"HTTP/1.1 200") == len(body) - cut
        assert found.is_over
    single = Body(200, headers, is_empty=False)
    assert all(not single.is_over and single.feed(bytes([byte])) == 1 for byte in body)
    assert single.is_over

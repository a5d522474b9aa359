"""gzip that is compressed once for all, read frame by frame through real servers by clients that did not make it."""

from __future__ import annotations

import asyncio
import gzip
import signal
import uuid
from contextlib import closing
from typing import TYPE_CHECKING

import pytest
from playwright.async_api import async_playwright

from .browsers import ARGUMENTS
from .clients import read_by_curl, read_by_httpx
from .servers import (
    BOTH_LANES,
    GUARD,
    RESPONSE_LANE,
    RawStream,
    Server,
    Servers,
    Site,
    looked_after,
    opened,
    stream_path,
    until,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

#: Only clients of servers run here.
pytestmark = pytest.mark.unmeasured

ACCEPTS = [("Accept-Encoding", "gzip, deflate, br")]


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    # A browser comes back soon.
    settings = '{"RETRY": [100, 500], "DRAIN_SPREAD": 0.5}'
    with closing(Servers(tmp_path_factory.mktemp("compressed"), EVENTS_TEST_SETTINGS=settings)) as servers:
        yield servers


@pytest.fixture(params=BOTH_LANES)
def server(request: pytest.FixtureRequest, servers: Servers) -> Iterator[Server]:
    yield from looked_after(servers[request.param])


@pytest.fixture(params=["uvicorn", "daphne", f"uvicorn{RESPONSE_LANE}"])
def some(request: pytest.FixtureRequest, servers: Servers) -> Iterator[Server]:
    """A server of each lane."""
    yield from looked_after(servers[request.param])


@pytest.fixture
def name() -> str:
    """A compressed channel of the test's own."""
    return f"gzip.{uuid.uuid4().hex}"


def vary(stream: RawStream) -> set[str]:
    return {header.strip().lower() for header in stream.headers.get("vary", "").split(",")}


async def test_each_event_comes_compressed_and_at_once(server: Server, name: str) -> None:
    """The first bytes, each event and what one client alone is told can be read as soon as they are there."""
    stream = await RawStream.open(server.port, stream_path(name), ACCEPTS)
    try:
        assert stream.headers["content-encoding"] == "gzip"
        assert stream.headers["cache-control"] == "no-cache, no-transform"
        assert "accept-encoding" in vary(stream)
        await stream.begin()
        for number in range(10):
            text = f"event {number} " + "so much of the same " * 500
            cursor = await server.site.apublish(name, text)
            event = await stream.next(10)
            assert (event.data, event.id) == (text, cursor)
        assert len(stream.body) < len(stream.text) / 10
    finally:
        stream.abort()


async def test_who_does_not_accept_gzip_gets_it_plain(server: Server, name: str) -> None:
    """Streams of one channel, with gzip and without, at the same time: the same events, each as its client wants."""
    plain = f"public.{uuid.uuid4().hex}"
    async with (
        opened(server, name, count=2, headers=ACCEPTS) as compressed,
        opened(server, name, count=2) as identity,
        opened(server, name, headers=[("Accept-Encoding", "gzip;q=0, identity")]) as refusing,
        opened(server, name, headers=ACCEPTS, envelope="1") as wrapped,
        opened(server, plain, headers=ACCEPTS) as others,
    ):
        for stream in (*compressed, *wrapped):
            assert stream.headers["content-encoding"] == "gzip"
        for stream in (*identity, *refusing, *others):
            assert stream.headers["content-encoding"] == "identity"
        for stream in (*identity, *refusing):
            # A cache between must not give one the other's.
            assert "accept-encoding" in vary(stream)
        await server.site.arun(
            "for number in range(50): publish(channel, f'{number} ☃')\npublish(channel, 'end')", channel=name
        )
        expected = [f"{number} ☃" for number in range(50)]
        for stream in (*compressed, *identity, *refusing):
            assert [event.data for event in await stream.until("end")] == expected
        for stream in wrapped:
            assert [(await stream.next()).json()["data"] for _ in expected] == expected


async def test_a_client_that_comes_later_reads_what_it_alone_has_not_seen(server: Server, name: str) -> None:
    """What is compressed for all refers to nothing that was sent before: a newcomer has none of it."""
    text = uuid.uuid4().hex * 20
    async with opened(server, name, headers=ACCEPTS) as (first,):
        for _ in range(3):
            await server.site.apublish(name, text)
            assert (await first.next(10)).data == text
        async with opened(server, name, headers=ACCEPTS) as (late,):
            for number in range(3):
                await server.site.apublish(name, f"{number} {text}")
                for stream in (first, late):
                    assert (await stream.next(10)).data == f"{number} {text}"


async def test_a_client_that_resumes_reads_the_log_and_then_what_is_live(server: Server, name: str) -> None:
    """What is compressed for one stream, and what is for all, follow each other in one gzip stream."""
    ids = await server.site.arun(
        "result = [publish(channel, f'{number} ' + 'x' * 3000).id for number in range(300)]", channel=name
    )
    async with opened(server, name, cursor=ids[9], headers=ACCEPTS) as (stream,):
        for number in range(10, 300):
            assert (await stream.next()).data == f"{number} " + "x" * 3000
        for number in range(20):
            await server.site.apublish(name, f"live {number}")
            assert (await stream.next(10)).data == f"live {number}"


async def test_curl_reads_each_event_at_once(some: Server, name: str) -> None:
    """`curl --compressed` shows each event before the next is published."""
    head = await read_by_curl(some, some.port, name)
    assert b"content-encoding: gzip" in head.lower()


async def test_httpx_reads_each_event_at_once(some: Server, name: str) -> None:
    """httpx decompresses each event before the next is published."""
    assert (await read_by_httpx(some, name))["Content-Encoding"] == "gzip"


# Asks the page for its newest event, once that is there.
NEWEST = "count => seen.length === count && seen[count - 1]"


@pytest.mark.browser
async def test_chromium_reads_each_event_at_once_and_resumes(chromium: str, servers: Servers, name: str) -> None:
    """Chromium's own EventSource gets each event before the next is published, and comes back after the end."""
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=chromium, args=ARGUMENTS)
        try:
            for kind in ("uvicorn", "daphne", f"uvicorn{RESPONSE_LANE}"):
                server = servers[kind]
                page = await browser.new_page()
                page.set_default_timeout(GUARD * 1000)
                async with page.expect_response(lambda response: "/events/stream/" in response.url) as answered:
                    await page.goto(f"http://127.0.0.1:{server.port}/blank/")
                    await page.evaluate(
                        """path => new Promise((resolve, reject) => {
                            window.seen = [];
                            window.opened = 0;
                            window.source = new EventSource(path);
                            source.onopen = () => { opened += 1; resolve(); };
                            source.onmessage = (event) => seen.push([event.data, event.lastEventId]);
                        })""",
                        stream_path(name),
                    )
                response = await answered.value
                assert await response.header_value("content-encoding") == "gzip"
                for number in range(10):
                    cursor = await server.site.apublish(name, f"event {number}")
                    newest = await page.wait_for_function(NEWEST, arg=number + 1, timeout=10_000)
                    assert await newest.json_value() == [f"event {number}", cursor]
                # The end of the gzip stream is one that Chromium accepts: it comes back with its cursor.
                await server.site.arun("from events import control; control.drain()")
                await server.site.apublish(name, "meanwhile")
                newest = await page.wait_for_function(NEWEST, arg=11)
                assert (await newest.json_value())[0] == "meanwhile"
                assert await page.evaluate("opened") == 2
                await page.close()
        finally:
            await browser.close()


@pytest.mark.parametrize("kind", BOTH_LANES)
async def test_after_a_drain_the_gzip_stream_is_whole(kind: str, tmp_path: Path, name: str) -> None:
    """At an orderly end a strict reader finds length and checksum right, with the time to come back inside."""
    with closing(Site(tmp_path)) as site:
        server = site.start(kind)
        async with opened(server, name, count=20, headers=ACCEPTS) as streams:
            # What all get at once, what is too much for that, and again what all get.
            for code, count in (
                ("publish(channel, 'one ☃')", 1),
                ("publish_many([(channel, 'x' * 1000) for number in range(100)])", 101),
                ("publish(channel, 'another ☃')", 102),
            ):
                await site.arun(code, channel=name)
                for stream in streams:
                    while len(stream.events) < count:
                        await stream.read()
            server.signal(signal.SIGTERM)
            await asyncio.gather(*(stream.rest() for stream in streams))
            for stream in streams:
                assert stream.ended
                # Python's gzip looks at the trailer, and refuses what is cut off.
                assert gzip.decompress(stream.body) == stream.text
                assert len(stream.retries) == 2
            await server.exited()


async def test_a_client_that_is_put_off_can_read_that(tmp_path: Path, name: str) -> None:
    """Where a limit is reached, the few bytes that say so are a whole gzip stream as well."""
    with closing(Site(tmp_path, EVENTS_TEST_SETTINGS='{"MAX_STREAMS": 1}')) as site:
        server = site.start("uvicorn")
        async with opened(server, name, headers=ACCEPTS):
            stream = await RawStream.open(server.port, stream_path(name), ACCEPTS)
            try:
                await stream.rest()
                assert stream.ended
                assert stream.headers["content-encoding"] == "gzip"
                assert gzip.decompress(stream.body).startswith(b"retry: ")
            finally:
                stream.abort()

        async def empty() -> bool:
            return bool((await server.ajson("/debug/"))["streams"] == 0)

        await until(empty, "the stream is gone")

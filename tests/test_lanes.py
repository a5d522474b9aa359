"""Which lane serves streams under real servers, what is put around the site, and what an open stream holds there."""

from __future__ import annotations

import asyncio
import gzip
import time
import uuid
from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest

from .servers import BOTH_LANES, FOUR, RawStream, Server, Servers, Site, looked_after, opened, stream_path, until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

#: Only clients of servers run here.
pytestmark = pytest.mark.unmeasured


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    with closing(Servers(tmp_path_factory.mktemp("lanes"))) as servers:
        yield servers


@pytest.fixture(params=BOTH_LANES)
def server(request: pytest.FixtureRequest, servers: Servers) -> Iterator[Server]:
    """A server whose log is shown where the test fails, and holds no fault where it does not."""
    yield from looked_after(servers[request.param])


async def lanes(server: Server) -> dict[str, int]:
    """How many streams are in which lane."""
    found: dict[str, int] = (await server.ajson("/debug/"))["lanes"]
    return found


async def test_streams_are_in_the_lane_that_the_site_was_set_up_for(server: Server, name: str) -> None:
    """With `events.asgi` the hub writes to the server itself; with Django's own application Django does."""
    async with opened(server, name, count=3) as streams:
        expected = {"ResponseStream": 3} if server.is_in_response_lane else {"DirectStream": 3}

        async def as_expected() -> bool:
            return await lanes(server) == expected

        await until(as_expected, "the streams are the only ones")
        for number in range(3):
            await server.site.apublish(name, str(number))
            for stream in streams:
                assert (await stream.next()).data == str(number)
        # Nobody is behind: no stream has a task of ours.
        assert (await server.ajson("/debug/"))["driven"] == 0


async def test_a_client_that_does_not_say_what_it_accepts_is_served_alike(server: Server, name: str) -> None:
    """Whichever way the site's middleware admits a stream, an EventSource's or anybody's, it is the same one."""
    async with opened(server, name) as browsers, opened(server, name, headers=[("Accept", "*/*")]) as others:
        (asked, unasked) = (*browsers, *others)
        # Other events may have been published in between.
        different = {"date", "events-cursor"}
        assert {name: value for name, value in asked.headers.items() if name not in different} == {
            name: value for name, value in unasked.headers.items() if name not in different
        }
        await server.site.apublish(name, "to both")
        assert [(await stream.next()).data for stream in (asked, unasked)] == ["to both"] * 2


async def test_streams_of_one_channel_are_all_served(server: Server, name: str) -> None:
    """Of two streams of the same channels each gets everything, also where a server's `send` objects compare equal."""
    async with opened(server, name, count=2) as (first, second):
        await server.site.apublish(name, "to both")
        assert [(await stream.next()).data for stream in (first, second)] == ["to both"] * 2
        first.abort()

        async def one_left() -> bool:
            return sum((await lanes(server)).values()) == 1

        await until(one_left, "one of the two has gone")
        await server.site.apublish(name, "to the other")
        assert (await second.next()).data == "to the other"


async def test_an_event_larger_than_any_buffer_reaches_all_whole(server: Server, name: str) -> None:
    """Where `send` has to wait for the client, what follows waits too, and nobody else does."""
    async with opened(server, name, count=3) as streams:
        large = "x" * 250_000
        await server.site.arun(
            """
            for number in range(8):
                publish(channel, f"{number}{large}")
                publish(channel, str(number))
            publish(channel, "end")
            """,
            channel=name,
            large=large,
        )
        expected = [text for number in range(8) for text in (f"{number}{large}", str(number))]
        for events in await asyncio.gather(*(stream.until("end") for stream in streams)):
            assert [event.data for event in events] == expected

        async def caught_up() -> bool:
            return bool((await server.ajson("/debug/"))["driven"] == 0)

        await until(caught_up, "every client has caught up")


async def test_a_finite_stream_ends_while_a_publisher_publishes_without_rest(server: Server, name: str) -> None:
    """All up to where its header says that the log was, nothing twice and no hole; then the response is complete."""
    count = 300
    first = await server.site.apublish(name, "0")
    await server.site.arun("for number in range(1, count): publish(channel, str(number))", channel=name, count=count)
    await server.site.arun(
        """
        def publish_on():
            number = count
            try:
                while not os.path.exists(stop):
                    publish(channel, str(number))
                    number += 1
            finally:
                connections.close_all()

        thread = threading.Thread(target=publish_on)
        thread.start()
        sys.modules["__main__"].publisher = thread
        """,
        channel=name,
        count=count,
        stop=str(server.site.folder / name),
    )
    try:
        for _ in range(5):
            stream = await RawStream.open(
                server.port, stream_path(name, follow="0", visitor="1", from_="earliest"), [("Accept-Encoding", "gzip")]
            )
            assert (stream.status, len(stream.headers["events-visitor"])) == (200, 32)
            begun = time.monotonic()
            await stream.rest()
            assert stream.ended
            # Long before a keep-alive, or anything else that would wake a stream up that waits.
            assert time.monotonic() - begun < 5
            assert len(stream.retries) == 1
            *events, end = stream.events
            assert [event.data for event in events] == [str(number) for number in range(len(events))]
            promised = position_of(stream.headers["events-cursor"])
            assert (end.event, position_of(end.json()["cursor"])) == ("stream-end", position_of(events[-1].id))
            assert position_of(events[-1].id) >= promised >= position_of(first) + count - 1
            await stream.close()
    finally:
        (server.site.folder / name).touch()
        await server.site.arun('sys.modules["__main__"].publisher.join(30)')

    async def nobody_left() -> bool:
        return not sum((await lanes(server)).values())

    await until(nobody_left, "none of them is open any more")


def position_of(cursor: str) -> int:
    """Where in the log a cursor stands."""
    return int(cursor.partition("-")[2])


async def test_the_last_bytes_of_a_finite_stream_are_the_end_of_its_gzip_member(server: Server) -> None:
    """Whatever the server makes of the response, a reader that checks it is satisfied."""
    name = f"gzip.{uuid.uuid4().hex}"
    cursor = await server.site.apublish(name, "x" * 100_000)
    path = stream_path(name, follow="0", envelope="1", from_="earliest")
    stream = await RawStream.open(server.port, path, [("Accept-Encoding", "gzip")])
    await stream.rest()
    assert gzip.decompress(stream.body) == stream.text
    assert [event.json().get("channel") for event in stream.events] == [name, None]
    assert stream.events[-1].json() == {"cursor": cursor}
    assert stream.headers["events-cursor"] == cursor
    await stream.close()
    head = await RawStream.open(server.port, path, method="HEAD")
    assert (head.status, head.headers["events-cursor"]) == (200, cursor)
    await head.close()


async def sessions(site: Site, count: int) -> list[str]:
    """The cookies of so many users who have signed in."""
    found: list[str] = await site.arun(
        """
        from django.contrib.auth.models import User
        from django.test import Client

        result = []
        for number in range(count):
            client = Client()
            client.force_login(User.objects.create_user(f"{name}-{number}"))
            result.append("sessionid=" + client.cookies["sessionid"].value)
        """,
        count=count,
        name=uuid.uuid4().hex,
    )
    return found


async def test_three_hundred_streams_hold_neither_thread_nor_connection(server: Server) -> None:
    """300 users who were looked up in the database leave their streams with no thread and no connection to it."""
    # promise 13
    channel = f"signed-in.{uuid.uuid4().hex}"
    cookies = await sessions(server.site, 3)

    async def open_one(number: int) -> RawStream:
        headers = [("Cookie", cookies[number % len(cookies)])]
        return await (await RawStream.open(server.port, stream_path(channel), headers)).begin()

    async def held(count: int) -> dict[str, Any]:
        async def settled() -> dict[str, Any] | None:
            found = await server.ajson("/debug/")
            # The threads of those who have just come end in their own time.
            return found if found["streams"] == count and found["threads"] < 30 + start["threads"] else None

        found: dict[str, Any] = await until(settled, f"{count} streams have let go of what admitted them")
        return found

    assert (await server.aget(stream_path(channel)))[0] == 403
    streams: list[RawStream] = []
    start = await server.ajson("/debug/")
    try:
        # Pools of threads fill with the first ones.
        streams += await asyncio.gather(*(open_one(number) for number in range(20)))
        before = await held(20)
        for begin in range(20, 320, 50):
            streams += await asyncio.gather(*(open_one(number) for number in range(begin, begin + 50)))

        async def nothing_more() -> bool:
            last[:] = [await server.ajson("/debug/")]
            return last[0]["streams"] == 320 and all(
                # A thread that serves any request may come, and a connection with it.
                last[0][kind] <= before[kind] + 3
                for kind in ("threads", "databases")
            )

        last: list[dict[str, Any]] = []
        try:
            await until(nothing_more, "300 streams more hold no thread and no connection more")
        except AssertionError:
            raise AssertionError(f"before: {before}\nafter: {last}") from None
        if not server.is_in_response_lane:
            # Django has finished with all of them.
            assert last[0]["unfinished"] == 0
        await server.site.apublish(channel, "to all")
        for event in await asyncio.gather(*(stream.next() for stream in streams)):
            assert event.data == "to all"
    finally:
        for stream in streams:
            stream.abort()


# What is put around the site


@pytest.mark.parametrize("kind", FOUR)
async def test_a_router_around_the_site_changes_nothing(kind: str, tmp_path: Path, name: str) -> None:
    """Under a router that knows only HTTP, and refuses the lifespan protocol, streams stay in the direct lane."""
    with closing(Site(tmp_path)) as site:
        site.application = "tests.site.routed:application"
        server = site.start(kind)
        async with opened(server, name, count=2) as streams:
            assert await lanes(server) == {"DirectStream": 2}
            await site.apublish(name, "routed")
            for stream in streams:
                assert (await stream.next()).data == "routed"
            server.signal(15)
            for stream in streams:
                await stream.rest()
                assert stream.ended
                assert len(stream.retries) == 2
            await server.exited()


@pytest.mark.parametrize("kind", FOUR)
async def test_a_send_that_is_not_the_servers_own_is_called_in_a_task(kind: str, tmp_path: Path, name: str) -> None:
    """A middleware of ASGI that waits under a time limit, which belongs to the task that it is called in, works."""
    with closing(Site(tmp_path)) as site:
        site.application = "tests.site.routed:watched"
        server = site.start(kind)
        async with opened(server, name, count=3) as streams:
            assert await lanes(server) == {"DirectStream": 3}
            await site.arun(
                "for number in range(200): publish(channel, str(number))\npublish(channel, 'end')", channel=name
            )
            for events in await asyncio.gather(*(stream.until("end") for stream in streams)):
                assert [event.data for event in events] == [str(number) for number in range(200)]
        assert "Traceback" not in server.log()


async def test_the_lifespan_protocol_is_answered(tmp_path: Path, name: str) -> None:
    """A server that insists on the lifespan protocol starts, and is told when the shutdown is complete."""
    with closing(Site(tmp_path)) as site:
        server = site.start("lifespan_uvicorn")
        async with opened(server, name) as (stream,):
            server.signal(15)
            await stream.rest()
            assert stream.ended
        await server.exited()
        log = server.log()
        assert log.index("Application startup complete.") < log.index("Application shutdown complete.")
        assert "Traceback" not in log


async def test_uvicorn_without_its_fast_parts_serves_the_direct_lane(tmp_path: Path, name: str) -> None:
    """With h11 and the event loop of the standard library: what is installed by `pip install uvicorn`."""
    with closing(Site(tmp_path)) as site:
        server = site.start("plain_uvicorn")
        async with opened(server, name, count=3) as streams:
            assert await lanes(server) == {"DirectStream": 3}
            await site.apublish(name, "x" * 200_000)
            await site.apublish(name, "end")
            for events in await asyncio.gather(*(stream.until("end") for stream in streams)):
                assert [len(event.data) for event in events] == [200_000]
            server.signal(15)
            for stream in streams:
                await stream.rest()
                assert stream.ended
                assert len(stream.retries) == 2
            await server.exited()
        assert "Traceback" not in server.log()

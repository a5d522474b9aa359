"""Clients that take nothing, or too many: what they cost a real server, and what they cost the others."""

from __future__ import annotations

import asyncio
import json
import re
import time
import uuid
from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest

from .servers import (
    BOTH_LANES,
    FOUR,
    RESPONSE_LANE,
    RawStream,
    Server,
    Servers,
    looked_after,
    opened,
    stream_path,
    until,
    wait_open,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

#: Only clients of servers run here.
pytestmark = pytest.mark.unmeasured

MEGABYTE = 1024 * 1024
#: Seconds after which a client that takes nothing is closed.
TIMEOUT = 3
LIMITS = {
    "SLOW_CLIENT_TIMEOUT": TIMEOUT,
    "KEEPALIVE": 2,
    # Small, so that what streams hold shows beside what the process holds for all of them.
    "RING_BYTES": MEGABYTE,
}
#: Daphne bounds nothing there: `docs/deploying.md` says so.
BOUNDED = [kind for kind in BOTH_LANES if kind != f"daphne{RESPONSE_LANE}"]


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    folder = tmp_path_factory.mktemp("slow")
    with closing(Servers(folder, EVENTS_TEST_SETTINGS=json.dumps(LIMITS))) as servers:
        yield servers


@pytest.fixture(params=BOUNDED)
def server(request: pytest.FixtureRequest, servers: Servers) -> Iterator[Server]:
    yield from looked_after(servers[request.param])


async def stalling(server: Server, path: str) -> RawStream:
    """A client that reads no more than the head of the answer, on a system that takes little for it."""
    return await RawStream.open(server.port, path, buffer=4096)


async def debug(server: Server) -> dict[str, Any]:
    found: dict[str, Any] = await server.ajson("/debug/")
    return found


LARGE = "for number in range(count): publish(channel, f'{number:04}' + 'x' * size)"


async def test_readers_that_stall_cost_little_are_closed_and_delay_nobody(server: Server, name: str) -> None:
    """20 clients take nothing of 20 MB each: the process stays small, closes them, and others get all meanwhile."""
    # promise 15
    path = stream_path(name)
    # Small enough that what a stream at the head gets is what all get.
    size, count = 20_000, 1000
    async with opened(server, name, count=3) as readers:
        # Whatever the first large events need in this process is there.
        await server.site.arun(LARGE, channel=name, size=size, count=10)
        for reader in readers:
            for _ in range(10):
                await reader.next()
        stuck = await asyncio.gather(*(stalling(server, path) for _ in range(20)))
        try:
            before = await debug(server)
            assert before["streams"] == 23
            mark = server.mark()
            begin = time.monotonic()
            publishing = asyncio.create_task(server.site.arun(LARGE, channel=name, size=size, count=count))
            for number in range(count):
                for events in await asyncio.gather(*(reader.next() for reader in readers)):
                    assert events.data[:4] == f"{number:04}"
            await publishing
            took = time.monotonic() - begin

            async def only_readers() -> dict[str, Any] | None:
                found = await debug(server)
                return found if found["streams"] == 3 else None

            after = await until(only_readers, "those who stall are closed")
            # Counted and logged, with the channel.
            assert after["limits"][f"SLOW_CLIENT_TIMEOUT {name}"] == 20
            assert f"limit reached: limit=SLOW_CLIENT_TIMEOUT channels={name}" in server.log(mark)
            # Each could have had 20 MB waiting, 400 in all.
            grown = (after["memory"]["most"] - before["memory"]["now"]) / MEGABYTE
            assert grown < 80, f"{grown:.0f} MB"

            async def let_go() -> bool:
                found = await debug(server)
                return bool(found["tasks"] < before["tasks"] and found["driven"] == 0)

            # Not more often: hypercorn keeps some tasks of each request for five seconds, those of this one, too.
            await until(let_go, "their tasks are gone", every=1)
            for stream in stuck:
                # What was on its way still comes. Then the connection is cut, not ended: the client has not had all.
                with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
                    await stream.rest()
                assert not stream.ended
                assert len(stream.text) < count * size
            # The others were never held up for as long as a client may stall.
            assert took < 20
            await server.site.apublish(name, "as ever")
            for reader in readers:
                assert (await reader.next()).data == "as ever"
        finally:
            for stream in stuck:
                stream.abort()


async def test_a_reader_that_goes_on_in_time_misses_nothing(server: Server, name: str) -> None:
    """A client that stalls for a while, and comes back before it is closed, gets all that came meanwhile, in order."""
    # promise 15
    slow = await stalling(server, stream_path(name))
    try:
        # More than the ring has room for: the rest comes from the log.
        await server.site.arun(LARGE, channel=name, size=100_000, count=100)

        async def is_behind() -> bool:
            found = await debug(server)
            return server.is_in_response_lane or bool(found["driven"] == 1)

        await until(is_behind, "a task waits for the client")
        await slow.begin()
        for number in range(100):
            assert (await slow.next()).data[:4] == f"{number:04}"
        await server.site.apublish(name, "live again")
        assert (await slow.next()).data == "live again"

        async def caught_up() -> bool:
            return bool((await debug(server))["driven"] == 0)

        await until(caught_up, "the hub writes to it again")
    finally:
        slow.abort()


# Limits


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    """Servers that let few in."""
    settings = {"MAX_STREAMS": 5, "MAX_STREAMS_PER_USER": 2, "RING_EVENTS": 10}
    with closing(Servers(tmp_path_factory.mktemp("small"), EVENTS_TEST_SETTINGS=json.dumps(settings))) as servers:
        yield servers


@pytest.fixture(params=["uvicorn", "daphne", f"uvicorn{RESPONSE_LANE}"])
async def full(request: pytest.FixtureRequest, small: Servers) -> AsyncIterator[Server]:
    """One of them, which has let nobody in yet."""
    server = small[request.param]

    async def empty() -> bool:
        return bool((await debug(server))["streams"] == 0)

    await until(empty, "the streams of the last test are gone")
    for checked in looked_after(server):
        yield checked


async def assert_put_off(server: Server, name: str, headers: list[tuple[str, str]], limit: str) -> None:
    """One more client is told to come back later, by a stream that ends at once: 200, for anything else is for good."""
    before = (await debug(server))["limits"].get(f"{limit} {name}", 0)
    stream = await RawStream.open(server.port, stream_path(name), headers)
    try:
        await stream.rest()
        assert stream.status == 200
        assert stream.headers["content-type"].startswith("text/event-stream")
        assert stream.ended
        assert stream.events == []
        assert re.fullmatch(rb"retry: [0-9]+\n: [^\n]*\n", stream.text)
        # Later than the clients of `RETRY`, which is up to 5 s.
        assert 5000 <= stream.retries[0] <= 20_000
    finally:
        stream.abort()
    assert (await debug(server))["limits"][f"{limit} {name}"] == before + 1
    # One line in ten seconds for each limit, whichever channel it was.
    assert f"limit reached: limit={limit} channels=" in server.log()


async def test_more_streams_than_the_process_may_have_are_put_off(full: Server, name: str) -> None:
    """`MAX_STREAMS`: the sixth of five is put off, and let in once another has gone."""
    async with opened(full, name, count=5) as streams:
        await assert_put_off(full, name, [], "MAX_STREAMS")
        # Those who are in stay.
        await full.site.apublish(name, "to all")
        for stream in streams:
            assert (await stream.next()).data == "to all"
        streams[0].abort()

        async def gone() -> bool:
            return bool((await debug(full))["streams"] == 4)

        await until(gone, "one has gone")
        async with opened(full, name) as (late,):
            await full.site.apublish(name, "to those, too")
            assert (await late.next()).data == "to those, too"


async def test_more_streams_than_a_user_may_have_are_put_off(full: Server) -> None:
    """`MAX_STREAMS_PER_USER`: the third of two of one session's user is put off; others, and nobody's, are not."""
    name = f"signed-in.{uuid.uuid4().hex}"
    open_to_all = f"public.{uuid.uuid4().hex}"
    sessions = await full.site.arun(
        """
        from django.contrib.auth.models import User
        from django.test import Client

        result = []
        for number in range(2):
            user = User.objects.create_user(f"{number} {name}")
            # Two devices of one user.
            for _ in range(2):
                client = Client()
                client.force_login(user)
                result.append(client.cookies["sessionid"].value)
        """,
        name=name,
    )
    first, again, other, _ = ([("Cookie", f"sessionid={session}")] for session in sessions)
    await wait_open(full, name, first)
    async with opened(full, name, headers=first), opened(full, open_to_all, headers=again):
        await assert_put_off(full, name, first, "MAX_STREAMS_PER_USER")
        await assert_put_off(full, open_to_all, again, "MAX_STREAMS_PER_USER")
        async with opened(full, name, headers=other) as (stream,), opened(full, open_to_all, count=2):
            await full.site.apublish(name, "to others")
            assert (await stream.next()).data == "to others"


async def test_a_ring_that_is_full_is_counted(full: Server, name: str) -> None:
    """`RING_EVENTS`: what does not fit is in the log, and a client that was behind gets it from there."""
    async with opened(full, name) as (stream,):
        cursor = await full.site.apublish(name, "first")
        await full.site.arun("for number in range(30): publish(channel, str(number))", channel=name)
        await full.site.apublish(name, "end")
        assert len(await stream.until("end")) == 31
        assert (await debug(full))["limits"][f"RING {name}"] == 1
        assert f"limit reached: limit=RING channels={name}" in full.log()
        async with opened(full, name, cursor=cursor) as (behind,):
            assert [event.data for event in await behind.until("end")] == [str(number) for number in range(30)]


@pytest.mark.parametrize("kind", [*FOUR, f"uvicorn{RESPONSE_LANE}"])
async def test_streams_of_a_certain_age_end_and_come_back(
    kind: str, tmp_path_factory: pytest.TempPathFactory, name: str
) -> None:
    """`MAX_STREAM_AGE`: each stream ends properly, at 80 to 100% of it, and its client goes on where it was."""
    age = 2.5
    settings = json.dumps({"MAX_STREAM_AGE": age, "KEEPALIVE": 1})
    with closing(Servers(tmp_path_factory.mktemp("age"), EVENTS_TEST_SETTINGS=settings)) as servers:
        server = servers[kind]
        # What is loaded on first use is loaded, and the process that publishes has begun: streams do not live long.
        async with opened(server, name):
            await server.site.arun("")
        async with opened(server, name, count=30) as streams:
            cursor = await server.site.apublish(name, "seen")

            await asyncio.gather(*(stream.rest() for stream in streams))
            # From the first bytes to the last.
            lifetimes = [stream.reads[-1][0] - stream.reads[0][0] for stream in streams]
            for stream in streams:
                assert stream.ended
                assert [event.data for event in stream.events] == ["seen"]
                assert len(stream.retries) == 2
            # They do not go together, as they came. Each is looked at some times in a second.
            assert 0.75 * age < min(lifetimes) < 0.95 * age
            assert max(lifetimes) - min(lifetimes) > 0.05 * age
            found = await debug(server)
            assert found["limits"][f"MAX_STREAM_AGE {name}"] == 30
            assert f"limit reached: limit=MAX_STREAM_AGE channels={name}" in server.log()
        await server.site.apublish(name, "missed")
        async with opened(server, name, cursor=cursor) as (stream,):
            assert (await stream.next()).data == "missed"

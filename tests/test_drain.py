"""The orderly end of all streams when a real server stops, and when the development server starts again."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import socket
from contextlib import asynccontextmanager, closing
from typing import TYPE_CHECKING

import pytest

from .servers import (
    FOUR,
    GUARD,
    GUNICORN_GRACE,
    HYPERCORN_GRACE,
    RESPONSE_LANE,
    RawStream,
    Server,
    Site,
    opened,
    stream_path,
    until,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from pathlib import Path

#: Only clients of servers run here.
pytestmark = pytest.mark.unmeasured

#: Seconds in which a process has to be gone, after the time that hypercorn gives open responses. Two are promised, and
#: one is enough where nothing else runs; the rest is for machines that tests share. A process that waits for a stream
#: or a timer takes 15 at least.
PROMISED = 10.0
#: How many clients the promise names; a small machine may ask for less.
MANY = min(1000, int(os.environ.get("EVENTS_TEST_STREAMS", "1000")))
#: What the site does not say otherwise: `RETRY` begins here, and `DRAIN_SPREAD` is so long. Milliseconds.
FIRST, SPREAD = 1000, 5000


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Server]]:
    """Starts servers of a site of the test's own; they show their logs, which hold no fault."""
    with closing(Site(tmp_path)) as site:
        yield site.start
        for server in site.servers:
            log = server.log()
            print(log[-8000:])
            # asyncio of Python 3.11 reports each connection that hypercorn cancels at the end of its grace, as if that
            # were a fault. Nothing of ours is in it.
            faults = re.sub(r"(?s)[^\n]*StreamReaderProtocol\.connection_made.*?CancelledError\n", "", log)
            assert "Traceback" not in faults


@asynccontextmanager
async def many(server: Server, name: str, count: int) -> AsyncIterator[list[RawStream]]:
    """So many streams that are live, opened a hundred at a time."""
    streams: list[RawStream] = []
    try:
        while len(streams) < count:
            batch = min(100, count - len(streams))
            streams += await asyncio.gather(*(RawStream.open(server.port, stream_path(name)) for _ in range(batch)))
        await asyncio.gather(*(stream.begin() for stream in streams))
        yield streams
    finally:
        for stream in streams:
            stream.abort()
        await asyncio.sleep(0)


async def ended(streams: list[RawStream]) -> list[int]:
    """Read every stream to its end, which must be an orderly one. The times after which their clients come back."""
    await asyncio.gather(*(stream.rest() for stream in streams))
    found = []
    for stream in streams:
        assert stream.ended, stream.body[-300:]
        # The first bytes' and the last bytes', with no event after them.
        assert len(stream.retries) == 2, stream.body[-300:]
        assert re.search(rb"retry: [0-9]+\n: [^\n]*\n$", stream.text), stream.body[-300:]
        found.append(stream.retries[-1])
    return found


def assert_spread(retries: list[int]) -> None:
    """
    The times are spread evenly over the window, and are not some few.

    The distance between their distribution and an even one (Kolmogorov and Smirnov) exceeds 2.5 divided by the root of
    their number in one run of a hundred thousand.
    """
    count = len(retries)
    assert min(retries) >= FIRST
    assert max(retries) <= FIRST + SPREAD
    places = [(retry - FIRST) / SPREAD for retry in sorted(retries)]
    distance = max(max((index + 1) / count - place, place - index / count) for index, place in enumerate(places))
    assert distance < 2.5 / count**0.5, f"{distance:.3f} off an even spread: {sorted(retries)}"
    assert len(set(retries)) > 0.8 * count


def patience(kind: str) -> float:
    """
    Seconds in which a server of that kind has to be gone.

    hypercorn tells nobody that it stops: its streams learn it at the end of its grace, when they are cancelled.
    """
    return {"hypercorn": HYPERCORN_GRACE, "gunicorn": GUNICORN_GRACE}.get(kind.partition("-")[0], 0) + PROMISED


async def stalled(server: Server, name: str) -> RawStream:
    """A client for which more is on its way than it, the system and the server's buffer can hold."""
    stream = await RawStream.open(server.port, stream_path(name), buffer=4096)
    await server.site.arun(
        "publish_many([(channel, 'x' * 200_000)] * 50)",
        channel=name,
    )
    return stream


STOPPING = [
    *((kind, number) for kind in FOUR for number in (signal.SIGTERM, signal.SIGINT)),
    *((kind + RESPONSE_LANE, signal.SIGTERM) for kind in ("daphne", "uvicorn")),
]


#: Where the connection of a client that takes nothing can be cut. The other servers wait for it themselves, for which
#: docs/deploying.md names their own limits.
CUTTING = ("daphne", "hypercorn", "uvicorn", "daphne" + RESPONSE_LANE)


@pytest.mark.parametrize("kind, number", STOPPING)
async def test_a_signal_ends_every_stream_and_the_process(
    kind: str, number: int, start: Callable[..., Server], name: str
) -> None:
    """
    Each of 200 streams ends properly with a time of its own to come back.

    One client takes nothing, where the server lets that connection be cut.
    """
    # promise 9, promise 10
    server = start(kind)
    slow = f"{name}.slow"
    async with many(server, name, MANY // 5) as streams:
        stuck = await stalled(server, slow) if kind in CUTTING else None
        try:
            await server.site.apublish(name, "last")
            for stream in streams:
                assert (await stream.next()).data == "last"
            at = server.signal(number)
            assert_spread(await ended(streams))
            took = await server.exited() - at
            assert took < patience(server.kind), f"{took:.1f} s"
        finally:
            if stuck is not None:
                stuck.abort()
    # What is done when a stream is left was done, for the one that took nothing, too.
    for channel in (name, slow) if stuck is not None else (name,):
        assert f"channel={channel}\n" in server.log()


async def test_a_thousand_clients_come_back_over_the_whole_window(start: Callable[..., Server], name: str) -> None:
    """1,000 clients of a server that stops are told times which are spread evenly over `DRAIN_SPREAD`."""
    # promise 9, promise 10
    server = start("uvicorn")
    async with many(server, name, MANY) as streams:
        at = server.signal(signal.SIGTERM)
        assert_spread(await ended(streams))
        took = await server.exited() - at
        assert took < PROMISED, f"{took:.1f} s"


@pytest.mark.parametrize(
    "kind, number",
    [
        ("uvicorn-4", signal.SIGTERM),
        ("uvicorn-4", signal.SIGINT),
        ("gunicorn-2", signal.SIGTERM),
        ("gunicorn-2", signal.SIGINT),
    ],
)
async def test_a_signal_to_the_parent_ends_the_streams_of_every_worker(
    kind: str, number: int, start: Callable[..., Server], name: str
) -> None:
    """Whoever looks after several workers passes the signal on: the streams of all end, and so do the processes."""
    # promise 9
    server = start(kind)
    async with opened(server, name, count=10) as streams:
        processes = {stream.process for stream in streams}
        assert len(processes) == server.workers
        at = server.signal(number)
        retries = await ended(streams)
        assert len(set(retries)) > len(retries) / 2
        took = await server.exited() - at
        assert took < patience(kind), f"{took:.1f} s"
    log = server.log()
    for process in processes:
        assert f"feed closed: process={process} channel={name}\n" in log


async def test_the_development_server_starts_again_with_streams_open(
    start: Callable[..., Server], tmp_path: Path, name: str
) -> None:
    """A file of the site changes: the streams end with a time to come back, and a new process serves them."""
    # promise 9
    watched = tmp_path / "watched_by_the_reloader.py"
    watched.write_text("")
    server = start("runserver", EVENTS_TEST_IMPORT=watched.stem, PYTHONPATH=str(tmp_path))
    async with opened(server, name, count=5) as streams:
        (process,) = {stream.process for stream in streams}
        ending = asyncio.create_task(ended(streams))

        async def changed() -> bool:
            # The first look of Django's reloader, some time after the start, only says how the files are.
            watched.write_text("CHANGED = True\n")
            return ending.done()

        await until(changed, "the streams have ended")
        assert len(set(await ending)) > 1

    async def answers() -> bool:
        try:
            return bool((await server.ajson("/debug/"))["process"] != int(process))
        except OSError:
            return False

    await until(answers, "a new process answers")
    async with opened(server, name) as (stream,):
        await server.site.apublish(name, "as ever")
        assert (await stream.next()).data == "as ever"


async def test_ctrl_c_ends_the_development_server(start: Callable[..., Server], name: str) -> None:
    """A terminal's Ctrl-C reaches both of its processes; the streams end with a time to come back."""
    # promise 9
    server = start("runserver")
    async with opened(server, name, count=5) as streams:
        at = server.signal(signal.SIGINT)
        await ended(streams)
        took = await server.exited() - at
        assert took < PROMISED, f"{took:.1f} s"


@pytest.mark.parametrize("kind", ["daphne", "uvicorn", "granian"])
async def test_a_server_without_streams_stops_as_ever(kind: str, start: Callable[..., Server], name: str) -> None:
    """After the streams have gone by themselves nothing holds up a signal."""
    # promise 9
    server = start(kind)
    async with opened(server, name, count=3):
        pass

    async def gone() -> bool:
        return bool((await server.ajson("/debug/"))["streams"] == 0)

    await until(gone, "the streams have gone")
    at = server.signal(signal.SIGTERM)
    took = await server.exited() - at
    assert took < PROMISED, f"{took:.1f} s"


async def test_whoever_comes_while_a_server_drains_is_sent_away(start: Callable[..., Server], name: str) -> None:
    """A request on a connection that was open before gets a stream that ends at once, with a time to come back."""
    # promise 9, promise 10
    server = start("uvicorn")
    slow = f"{name}.slow"
    # uvicorn closes idle connections when it stops, which is after the drain; that waits for the client that stalls.
    waiting = await RawStream.open(server.port, "/blank/")
    await waiting.rest()
    stuck = await stalled(server, slow)
    async with opened(server, name) as streams:
        try:
            server.signal(signal.SIGTERM)
            await ended(streams)
            waiting.writer.write(f"GET {stream_path(name)} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
            late = RawStream(waiting.reader, waiting.writer)
            await late.read_head()
            await late.rest()
            assert late.status == 200
            assert late.ended
            assert late.events == []
            (retry,) = late.retries
            assert FIRST <= retry <= FIRST + SPREAD
        finally:
            stuck.abort()
            waiting.abort()
    await server.exited()


def test_the_port_is_free_at_once(start: Callable[..., Server]) -> None:
    """A server that has stopped can be started again in its place: nothing of it is left listening."""
    # promise 9
    server = start("daphne")
    server.stop()
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", server.port))
    server.start()
    assert server.get("/blank/")[0] == 200
    server.signal(signal.SIGTERM)
    assert server.process is not None
    server.process.wait(GUARD)

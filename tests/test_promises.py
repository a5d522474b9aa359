"""The promises about delivery, through real servers and between processes: once, in order, and nothing lost."""

from __future__ import annotations

import asyncio
import os
import re
import time
import uuid
from contextlib import closing
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from httpx_sse import aconnect_sse

from .servers import (
    GUARD,
    RESPONSE_LANE,
    Ground,
    OnMariaDB,
    OnPostgreSQL,
    OnRedis,
    RawStream,
    Server,
    Servers,
    Site,
    WorkerDiedError,
    looked_after,
    opened,
    stream_path,
    until,
    wait_open,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from events.testing import ReceivedEvent

#: Only clients of servers run here.
pytestmark = pytest.mark.unmeasured

#: How many streams a burst meets. The promise names 500; a small machine may ask for less.
STREAMS = int(os.environ.get("EVENTS_TEST_STREAMS", "500"))


#: Where a site on two workers may stand, beside SQLite. With an outbox, Redis too joins the site's transactions.
POSTGRESQL, MARIADB = "uvicorn-2 on postgresql", "uvicorn-2 on mariadb"
REDIS, OUTBOX = "uvicorn-2 on redis", "uvicorn-2 on redis with outbox"
RESPONSES = [f"daphne{RESPONSE_LANE}", f"uvicorn{RESPONSE_LANE}"]
on_every_engine = pytest.mark.parametrize("server", ["daphne", "uvicorn-2", POSTGRESQL, MARIADB, REDIS], indirect=True)


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    with closing(Servers(tmp_path_factory.mktemp("promises"))) as servers:
        yield servers


def stand(name: str, servers: Servers, request: pytest.FixtureRequest) -> Ground:
    """What sites on that engine stand on; empty for SQLite."""
    if name not in servers.grounds:
        engine, _, option = name.partition(" with ")
        server = request.getfixturevalue(f"{engine}_server")
        if engine == "redis":
            servers.grounds[name] = OnRedis(server, outbox=option == "outbox")
        else:
            servers.grounds[name] = {"postgresql": OnPostgreSQL, "mariadb": OnMariaDB}[engine](server)
    return servers.grounds[name]


@pytest.fixture(params=["daphne", "uvicorn-2"])
def server(request: pytest.FixtureRequest, servers: Servers) -> Iterator[Server]:
    """A server whose log is shown where the test fails, and holds no fault where it does not."""
    stand(request.param.partition(" on ")[2], servers, request)
    yield from looked_after(servers[request.param])


@pytest.fixture
def kept() -> str:
    """A public channel of the test's own, of which new streams get all that is kept."""
    return f"all.{uuid.uuid4().hex}"


def position(event: ReceivedEvent) -> int:
    return int(event.id.partition("-")[2])


async def read_until(streams: list[RawStream], data: str) -> list[list[str]]:
    """What each stream got up to the event with that data."""
    found = await asyncio.gather(*(stream.until(data) for stream in streams))
    return [[event.data for event in events] for events in found]


# Once, everywhere


@on_every_engine
async def test_an_event_of_any_process_reaches_every_stream_of_every_worker_once(server: Server, name: str) -> None:
    """A command, a request, a thread, a task, forked children: each event is seen by all of 20 streams, once."""
    # promise 1, promise 7
    site = server.site
    async with opened(server, name, count=20 // server.workers) as streams:
        assert len(streams) == 20
        assert len({stream.process for stream in streams}) == server.workers
        done = await asyncio.to_thread(site.manage, "publish_event", name, "command")
        assert done.stdout.strip().rpartition("-")[2].isdigit()
        status, _ = await server.aget(f"/publish/?channel={name}&data=request")
        assert status == 200
        status, _ = await server.aget(f"/apublish/?channel={name}&data=async-request")
        assert status == 200
        await site.arun(
            """
            publish(channel, "process")
            thread = threading.Thread(target=publish, args=(channel, "thread"))
            thread.start()
            thread.join()
            asyncio.run(apublish(channel, "coroutine"))

            async def inside():
                # On the loop's own thread, as from a sync function that a coroutine calls.
                await asyncio.to_thread(publish, channel, "thread of a coroutine")

            asyncio.run(inside())
            """,
            channel=name,
        )
        await site.arun(
            """
            import multiprocessing

            # As a server that loads the site before it forks: no connection is open.
            connections.close_all()
            child = os.fork()
            if child == 0:
                publish(channel, "fork")
                os._exit(0)
            assert os.waitpid(child, 0)[1] == 0
            process = multiprocessing.get_context("fork").Process(target=publish, args=(channel, "multiprocessing"))
            process.start()
            process.join()
            assert process.exitcode == 0
            publish(channel, "parent")
            """,
            channel=name,
        )
        await site.apublish(name, "end")
        expected = [
            *("command", "request", "async-request", "process", "thread", "coroutine", "thread of a coroutine"),
            *("fork", "multiprocessing", "parent"),
        ]
        for got in await read_until(streams, "end"):
            assert got == expected


def test_a_child_in_which_a_test_fails_does_not_answer_for_its_parent(tmp_path: Path) -> None:
    """It ends: what follows would be asked of it, with locks that nobody holds any more, and fail as well."""
    with closing(Site(tmp_path)) as site:
        code = """
            child = os.fork()
            if child == 0:
                raise RuntimeError("in the child")
            result = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            """
        assert site.run(code, guard=GUARD) == 1
        assert "in the child" in (site.folder / "worker.log").read_text()
        assert site.run("result = 'still there'") == "still there"


@pytest.mark.parametrize("server", ["uvicorn-2", POSTGRESQL, MARIADB, REDIS], indirect=True)
async def test_each_worker_publishes_to_the_streams_of_the_other(server: Server, name: str) -> None:
    """Whichever worker handles the request, the streams of both get the event, once."""
    # promise 1
    async with opened(server, name, count=3) as streams:
        by_worker: dict[int, list[str]] = {}

        async def both_published() -> bool:
            data = f"event {sum(map(len, by_worker.values()))}"
            answer = await server.ajson(f"/publish/?channel={name}&data={data.replace(' ', '%20')}")
            by_worker.setdefault(answer["process"], []).append(data)
            return len(by_worker) == 2

        await until(both_published, "both workers have published")
        assert {str(process) for process in by_worker} == {stream.process for stream in streams}
        await server.site.apublish(name, "end")
        count = sum(map(len, by_worker.values()))
        for got in await read_until(streams, "end"):
            assert got == [f"event {number}" for number in range(count)]


@pytest.mark.parametrize(
    "server",
    ["daphne", "uvicorn", "uvicorn-2", "hypercorn", "granian", *RESPONSES, POSTGRESQL, MARIADB, REDIS],
    indirect=True,
)
async def test_a_burst_reaches_five_hundred_streams_whole(server: Server, name: str) -> None:
    """500 streams, 50 events at once and 50 one after the other: none missing, none doubled, none backward."""
    # promise 2
    count = STREAMS // server.workers
    async with opened(server, name, count=count) as streams:
        assert len(streams) == count * server.workers
        await server.site.arun(
            """
            publish_many([(channel, str(number)) for number in range(50)])
            for number in range(50, 100):
                publish(channel, str(number))
            publish(channel, "end")
            """,
            channel=name,
        )
        expected = [str(number) for number in range(100)]
        for stream, got in zip(streams, await read_until(streams, "end"), strict=True):
            assert got == expected
            positions = [position(event) for event in stream.events]
            assert positions == sorted(set(positions))


# Between


@on_every_engine
async def test_what_is_published_between_page_and_subscription_arrives_once(server: Server, name: str) -> None:
    """The cursor that `event_cursor` wrote into a page continues the log from where the page was made."""
    # promise 3
    await server.site.apublish(name, "before the page")
    _, page = await server.aget("/page/")
    cursor = page.partition('id="cursor">')[2].partition("<")[0]
    await server.site.apublish(name, "while it loads")
    await server.site.apublish(name, "just before the stream")
    stream = await RawStream.open(server.port, stream_path(name, last_event_id=cursor))
    try:
        await stream.begin()
        await server.site.apublish(name, "end")
        got = [event.data for event in await stream.until("end")]
        assert got == ["while it loads", "just before the stream"]
    finally:
        stream.abort()


@pytest.mark.parametrize(
    "kind, engine",
    [("daphne", ""), ("uvicorn", ""), ("uvicorn", "postgresql"), ("uvicorn", "mariadb"), ("uvicorn", "redis")],
)
async def test_what_is_published_after_the_first_bytes_arrives(
    kind: str, engine: str, servers: Servers, request: pytest.FixtureRequest, tmp_path: Path, name: str
) -> None:
    """Whoever has seen the first bytes gets what is published from then on, though the log was slow to answer."""
    # promise 3
    with closing(Site(tmp_path, stand(engine, servers, request))) as site:
        # The publisher is ready, and only the server is slow: it could have looked after the event was published.
        site.run("")
        server = site.start(kind, EVENTS_TEST_SLOW_HEAD="0.3")
        stream = await RawStream.open(server.port, stream_path(name))
        try:
            await stream.begin()
            await site.apublish(name, "first")
            assert (await stream.next()).data == "first"
        finally:
            stream.abort()


HAMMER = """
count = 0
while count < total:
    size = count % 7 + 1
    publish_many([(channel, str(number)) for number in range(count, count + size)])
    count += size
    # Other channels move the log's head without a word to these streams.
    publish("public.other", "noise")
    if count % 3 == 0:
        time.sleep(0.002)
publish(channel, "end")
result = count
"""


@on_every_engine
@pytest.mark.parametrize("how", ["from=earliest", "replay=all", "cursor"])
async def test_nothing_falls_between_replay_and_live(how: str, server: Server, name: str, kept: str) -> None:
    """50 clients that connect while somebody publishes without rest each see one sequence, no hole and no repeat."""
    # promise 3
    channel = kept if how == "replay=all" else name
    options = {"from_": "earliest"} if how == "from=earliest" else {}
    # So that a cursor of a time before this test exists.
    start = await server.site.apublish(channel, "-1")
    hammering = asyncio.create_task(server.site.arun(HAMMER, channel=channel, total=700))

    async def client(number: int, first: RawStream) -> list[str]:
        # Each begins where the publisher is at another event.
        while len(first.events) < number * 12:
            await first.read()
        headers = [("Last-Event-ID", first.events[number].id)] if how == "cursor" else []
        stream = await RawStream.open(server.port, stream_path(channel, **options), headers)
        try:
            await stream.begin()
            return [event.data for event in await stream.until("end")]
        finally:
            stream.abort()

    pace = await RawStream.open(server.port, stream_path(channel), [("Last-Event-ID", start)])
    results = []
    try:
        # One reads, in order, and the others begin at its pace.
        for number in range(50):
            while len(pace.events) <= number * 12:
                await pace.read()
            results.append(asyncio.create_task(client(number, pace)))
        got = await asyncio.gather(*results)
        total = await hammering
    finally:
        pace.abort()
    whole = [str(number) for number in range(-1, total)]
    for number, events in enumerate(got):
        assert events == (whole[number + 2 :] if how == "cursor" else whole)


# Resuming


@on_every_engine
async def test_any_cursor_gives_exactly_what_followed_it(server: Server, name: str) -> None:
    """Each of the hundred places of a log of two channels continues with the rest, in order, without a reset."""
    # promise 4
    other = f"{name}.other"
    ids: list[str] = await server.site.arun(
        """
        start = str(event_backends["default"].head())
        # Now one channel, now the other, some in one go, so that neighbours are not consecutive.
        names = [channel if number % 3 else other for number in range(100)]
        first = [publish(names[number], str(number)).id for number in range(50)]
        rest = publish_many([(names[number], str(number)) for number in range(50, 100)])
        publish(channel, "end")
        result = [start, *first, *(event.id for event in rest)]
        """,
        channel=name,
        other=other,
    )
    assert len(set(ids)) == 101

    async def resume(place: int, *channels: str) -> list[str]:
        stream = await RawStream.open(server.port, stream_path(*channels), [("Last-Event-ID", ids[place])])
        try:
            await stream.begin()
            return [event.data for event in await stream.until("end")]
        finally:
            stream.abort()

    for begin in range(0, 101, 25):
        places = range(begin, min(begin + 25, 101))
        got = await asyncio.gather(*(resume(place, name, other) for place in places))
        assert got == [[str(number) for number in range(place, 100)] for place in places]
    got = await asyncio.gather(*(resume(place, name) for place in range(0, 101, 9)))
    assert got == [[str(number) for number in range(place, 100) if number % 3] for place in range(0, 101, 9)]


@on_every_engine
async def test_a_client_cut_off_at_every_event_misses_and_repeats_nothing(server: Server, name: str) -> None:
    """A client that loses its connection after each event and resumes has them all, once, while more are published."""
    # promise 4
    cursor = await server.site.apublish(name, "start")
    publishing = asyncio.create_task(
        server.site.arun(
            """
            for number in range(60):
                publish(channel, str(number))
                time.sleep(0.005)
            publish(channel, "end")
            """,
            channel=name,
        )
    )
    expected = [*(str(number) for number in range(60)), "end"]
    got: list[str] = []
    while len(got) < len(expected):
        stream = await RawStream.open(server.port, stream_path(name), [("Last-Event-ID", cursor)])
        try:
            event = await stream.next()
        finally:
            stream.abort()
        cursor = event.id
        got.append(event.data)
        # Looked at here, for a repeat would go on for ever.
        assert (event.event, event.data) == ("message", expected[len(got) - 1])
    await publishing


@on_every_engine
@pytest.mark.parametrize(
    "label, reason",
    [
        ("garbage", "unknown"),
        ("another server's id", "unknown"),
        ("ahead of the log", "unknown"),
        ("another life of the log", "epoch"),
        ("trimmed", "trimmed"),
    ],
)
@pytest.mark.parametrize("channels", [1, 2])
async def test_a_cursor_that_cannot_be_continued_gives_one_reset(
    label: str, reason: str, channels: int, server: Server, name: str
) -> None:
    """One `stream-reset` says which channels and why, then the stream is live; it is never silent, never repeated."""
    # promise 4
    names = [name, f"{name}.other"][:channels]
    cursor = await server.site.apublish(name, "old")
    epoch, _, place = cursor.partition("-")
    if label == "trimmed":
        await server.site.apublish(name, "trimmed")
        await server.site.arun('event_backends["default"].clear([channel])', channel=name)
    await seen_by_all(server)
    given = {
        "garbage": "?!",
        "another server's id": "1732280000000-0-1",
        "ahead of the log": f"{epoch}-{int(place) + 1000}",
        "another life of the log": f"0ther{epoch}-{place}",
        "trimmed": cursor,
    }[label]
    stream = await RawStream.open(server.port, stream_path(*names), [("Last-Event-ID", given)])
    try:
        await stream.begin()
        reset = await stream.next()
        assert reset.event == "stream-reset"
        # A control event has no id, so that the next connect does not begin with what it says.
        assert "id:" not in stream.body.decode()
        # Only what was trimmed is missing; a cursor of another log says nothing about any channel.
        affected = [name] if label == "trimmed" else names
        assert reset.json() == {"channels": affected, "reason": reason, "cursor": reset.json()["cursor"]}
        assert reset.json()["cursor"].startswith(f"{epoch}-")
        for number in range(3):
            await server.site.apublish(names[-1], f"live {number}")
        await server.site.apublish(names[0], "end")
        assert [(event.event, event.data) for event in await stream.until("end")] == [
            ("message", f"live {number}") for number in range(3)
        ]
        # Where the reset says that the log is, resuming goes on without another.
        again = await RawStream.open(server.port, stream_path(*names), [("Last-Event-ID", reset.json()["cursor"])])
        try:
            await again.begin()
            assert [event.data for event in await again.until("end")] == [f"live {number}" for number in range(3)]
        finally:
            again.abort()
    finally:
        stream.abort()


async def seen_by_all(server: Server) -> None:
    """Wait until every worker has read the log up to here: what is live there begins after it."""
    watched = f"public.{uuid.uuid4().hex}"
    async with opened(server, watched) as streams:
        await server.site.apublish(watched, "here")
        for stream in streams:
            await stream.next()


@on_every_engine
async def test_a_reset_with_from_earliest_gives_all_that_is_kept(server: Server, name: str) -> None:
    """A client that wants the oldest event gets it after the reset, trimmed or not."""
    # promise 4
    first = await server.site.apublish(name, "trimmed")
    await server.site.arun('event_backends["default"].clear([channel])', channel=name)
    await server.site.apublish(name, "kept")
    await seen_by_all(server)
    for cursor, reason in ((f"{first.partition('-')[0]}-0", "trimmed"), ("garbage", "unknown")):
        path = stream_path(name, from_="earliest")
        stream = await RawStream.open(server.port, path, [("Last-Event-ID", cursor)])
        try:
            await stream.begin()
            assert (await stream.next()).json()["reason"] == reason
            assert (await stream.next()).data == "kept"
        finally:
            stream.abort()


# Transactions


@pytest.mark.parametrize("server", ["daphne", "uvicorn-2", POSTGRESQL, MARIADB, OUTBOX], indirect=True)
async def test_a_process_killed_right_after_its_commit_has_published(server: Server, name: str) -> None:
    """SIGKILL between the commit and the numbering or relaying of events: they arrive all the same, once, in order."""
    # promise 5
    async with opened(server, name, count=2) as streams:
        with pytest.raises(WorkerDiedError) as died:
            await server.site.arun(
                """
                from events.backends.database import DatabaseBackend
                from events.backends.outbox import Outbox

                def die(*args):
                    os.kill(os.getpid(), signal.SIGKILL)

                DatabaseBackend._after_commit = Outbox._after_commit = die
                with transaction.atomic():
                    publish(channel, "first")
                    publish(channel, "second")
                """,
                channel=name,
            )
        assert died.value.args == (-9,)
        # Nobody publishes now: it is the servers' own tails that find them.
        for stream in streams:
            assert [(await stream.next()).data for _ in range(2)] == ["first", "second"]
        await server.site.apublish(name, "end")
        for got in await read_until(streams, "end"):
            assert got == []


@on_every_engine
async def test_a_process_killed_before_its_commit_has_not_published(server: Server, name: str) -> None:
    """What dies with its transaction is nowhere."""
    # promise 5
    async with opened(server, name) as streams:
        with pytest.raises(WorkerDiedError):
            await server.site.arun(
                """
                with transaction.atomic():
                    publish(channel, "never")
                    os.kill(os.getpid(), signal.SIGKILL)
                """,
                channel=name,
            )
        # By a process that must start first: what should not come had the time to.
        await asyncio.to_thread(server.site.manage, "publish_event", name, "end")
        for got in await read_until(streams, "end"):
            assert got == []


@on_every_engine
async def test_a_rolled_back_transaction_publishes_nothing(server: Server, name: str) -> None:
    """Of a transaction that fails nothing is published, nor of a savepoint; of one that commits all, once."""
    # promise 5
    async with opened(server, name) as streams:
        await server.site.arun(
            """
            try:
                with transaction.atomic():
                    publish(channel, "rolled back")
                    raise ValueError
            except ValueError:
                pass
            with transaction.atomic():
                publish(channel, "one")
                try:
                    with transaction.atomic():
                        publish(channel, "rolled back to a savepoint")
                        raise ValueError
                except ValueError:
                    pass
                last = publish(channel, "two")
                assert last.id is None
            assert last.id is not None
            """,
            channel=name,
        )
        # By a process that must start first: what should not come had the time to.
        await asyncio.to_thread(server.site.manage, "publish_event", name, "end")
        for got in await read_until(streams, "end"):
            assert got == ["one", "two"]


@pytest.mark.parametrize(
    "server, numbered_by",
    [
        *((server, who) for server in ("daphne", "uvicorn-2", POSTGRESQL, MARIADB) for who in ("publisher", "tail")),
        (REDIS, "publisher"),
        (OUTBOX, "publisher"),
        (OUTBOX, "tail"),
    ],
    indirect=["server"],
)
async def test_whoever_reads_the_database_on_arrival_sees_the_committed_row(
    numbered_by: str, server: Server, name: str
) -> None:
    """An event that is published before its transaction writes a row comes when that row can be read."""
    # promise 6
    async with opened(server, name) as (stream, *_):
        publishing = asyncio.create_task(
            server.site.arun(
                """
                from django.contrib.auth.models import Group
                from events.backends.database import DatabaseBackend
                from events.backends.outbox import Outbox

                kinds = {kind: kind._after_commit for kind in (DatabaseBackend, Outbox)}
                if numbered_by == "tail":
                    for kind in kinds:
                        kind._after_commit = lambda *args: None
                try:
                    for index in range(30):
                        with transaction.atomic():
                            publish(channel, f"{channel}-{index}")
                            Group.objects.create(name=f"{channel}-{index}")
                finally:
                    for kind, method in kinds.items():
                        kind._after_commit = method
                """,
                channel=name,
                numbered_by=numbered_by,
            )
        )
        for index in range(30):
            event = await stream.next()
            assert event.data == f"{name}-{index}"
            assert server.site.query("SELECT count(*) FROM auth_group WHERE name = ?", event.data) == [(1,)]
        await publishing


@pytest.mark.parametrize("server", [POSTGRESQL, MARIADB, REDIS], indirect=True)
async def test_a_transaction_that_commits_late_is_missed_by_nobody(server: Server, name: str) -> None:
    """What was written first and committed last comes last, on streams that are long past what came between."""
    # promise 5
    go_on = server.site.folder / f"commit-{name}"
    async with opened(server, name, count=2) as streams:
        publishing = asyncio.create_task(
            server.site.arun(
                """
                written = threading.Event()

                def first():
                    with transaction.atomic():
                        publish(channel, "written first")
                        written.set()
                        end = time.monotonic() + 30
                        while not os.path.exists(go_on) and time.monotonic() < end:
                            time.sleep(0.01)
                    connections.close_all()

                thread = threading.Thread(target=first)
                thread.start()
                assert written.wait(30)
                # On SQLite, where Redis's site has its tables, there is one transaction at a time.
                if connection.vendor != "sqlite":
                    with transaction.atomic():
                        publish(channel, "written second")
                publish(channel, "between")
                thread.join()
                result = connection.vendor
                """,
                channel=name,
                go_on=str(go_on),
            )
        )
        before = await read_until(streams, "between")
        go_on.touch()
        vendor = await publishing
        await server.site.apublish(name, "end")
        assert before == [[] if vendor == "sqlite" else ["written second"]] * len(streams)
        for got in await read_until(streams, "end"):
            assert got == ["written first"]


# From process to process


@on_every_engine
async def test_a_drain_ends_every_stream_of_every_worker(server: Server, name: str) -> None:
    """Each stream ends properly, with a time of its own after which its client comes back, and it may."""
    async with opened(server, name, count=3) as streams:
        await server.site.arun("from events import control; control.drain()")
        times = set()
        for stream in streams:
            body = await stream.rest(10)
            assert stream.ended
            assert stream.events == []
            (_, last) = re.findall(rb"retry: ([0-9]+)\n", body)
            times.add(last)
        assert len(times) > 1
    async with opened(server, name) as streams:
        await server.site.apublish(name, "back")
        for stream in streams:
            assert (await stream.next()).data == "back"


@on_every_engine
async def test_a_recheck_ends_streams_whose_rights_are_gone(server: Server, name: str) -> None:
    """Who is taken out of a group behind the app's back loses the stream in every worker, and nobody else does."""
    site = server.site
    inside = f"inside-{uuid.uuid4().hex}"
    sessions = await site.arun(
        """
        from django.contrib.auth.models import Group, User
        from django.test import Client

        group = Group.objects.create(name=name)
        Channel.objects.create(name=name, access="groups").groups.add(group)
        result = []
        for number in range(2):
            user = User.objects.create_user(f"{number} {name}")
            user.groups.add(group)
            client = Client()
            client.force_login(user)
            result.append(client.cookies["sessionid"].value)
        """,
        name=inside,
    )
    gone, stays = ([("Cookie", f"sessionid={session}")] for session in sessions)
    await wait_open(server, inside, stays)
    async with (
        opened(server, inside, headers=gone) as ending,
        opened(server, inside, headers=stays) as others,
    ):
        await site.arun(
            """
            from django.contrib.auth.models import User
            from events import control

            User.groups.through.objects.filter(user__username=f"0 {name}").delete()
            control.recheck()
            """,
            name=inside,
        )
        for stream in ending:
            event = await stream.next(10)
            assert (event.event, event.json(), event.id) == ("stream-closed", {"reason": "revoked"}, "")
            assert await stream.rest(10)
            assert stream.ended
        await site.apublish(inside, "still here")
        for stream in others:
            assert (await stream.next()).data == "still here"


@on_every_engine
async def test_a_history_that_was_cleared_is_nobodys_any_more(server: Server, name: str) -> None:
    """Rings forget it too: a client that comes back to before it gets a reset, in every worker, and no old event."""
    # promise 4
    async with opened(server, name) as streams:
        cursor = await server.site.apublish(name, "seen")
        await server.site.apublish(name, "secret")
        # A ring would give it back.
        async with opened(server, name, cursor=cursor) as again:
            for stream in again:
                assert (await stream.next()).data == "secret"
        await server.site.arun("from events import control; control.clear_history([channel])", channel=name)
        await server.site.apublish(name, "end")
        for got in await read_until(streams, "end"):
            assert got == ["seen", "secret"]
        async with opened(server, name, cursor=cursor) as again:
            for stream in again:
                reset = await stream.next()
                assert (reset.event, reset.json()["reason"]) == ("stream-reset", "trimmed")
            await server.site.apublish(name, "live")
            for stream in again:
                assert b"secret" not in stream.body
                assert (await stream.next()).data == "live"


# Texts


#: What a parser may stumble over, and what must come out of it.
TEXTS = {
    "empty": ("", ""),
    "a space": (" ", " "),
    "leading spaces": ("   three", "   three"),
    "trailing spaces": ("three   ", "three   "),
    "a colon": (":", ":"),
    "like a comment": (": not a comment", ": not a comment"),
    "like fields": ("data: x\nid: 7\nevent: y\nretry: 1", "data: x\nid: 7\nevent: y\nretry: 1"),
    "lines": ("one\ntwo\n\nfour", "one\ntwo\n\nfour"),
    "CR LF and CR": ("one\r\ntwo\rthree\r\n\r\nfive", "one\ntwo\nthree\n\nfive"),
    "a last line end": ("one\n", "one\n"),
    "only line ends": ("\n\r\n\r", "\n\n\n"),
    "LF CR": ("a\n\rb", "a\n\nb"),
    "separators": ("a\u2028b\u2029c\u0085d", "a\u2028b\u2029c\u0085d"),
    "other line ends": ("a\x0bb\x0cc\x1cd\x1ee", "a\x0bb\x0cc\x1cd\x1ee"),
    "emoji": ("👩‍👩‍👧‍👦 🇪🇺 𝕏", "👩‍👩‍👧‍👦 🇪🇺 𝕏"),
    "a byte order mark": ("\ufeffa\ufeff", "\ufeffa\ufeff"),
    "right to left": ("שלום \u202eمرحبا", "שלום \u202eمرحبا"),
    "combined": ("e\u0301 ≠ é", "e\u0301 ≠ é"),
    "NUL": ("a\x00b", "a\x00b"),
    "markup": ("<img src=x onerror=alert(1)> & \"'", "<img src=x onerror=alert(1)> & \"'"),
    "long": ("äöü " * 20_000, "äöü " * 20_000),
}
#: The same, as JSON.
VALUES: dict[str, Any] = {
    "separators": {"a\u2028": "b\u2029c\u0085"},
    "lines": ["one\ntwo", "\r"],
    "emoji": "👩‍👩‍👧‍👦",
    "numbers": [0, -1, 1.5, 1e300, None, True, False],
    "nested": {"a": [{"b": {"c": []}}]},
}


async def test_texts_come_back_equal_through_an_independent_parser(server: Server, name: str) -> None:
    """httpx-sse reads every text as it was published, with its line ends made one, and every type."""
    # promise 17
    async with (
        httpx.AsyncClient(base_url=f"http://127.0.0.1:{server.port}", timeout=10, trust_env=False) as client,
        aconnect_sse(client, "GET", stream_path(name)) as source,
    ):
        events = source.aiter_sse()
        for text, expected in TEXTS.values():
            cursor = await server.site.apublish(name, text)
            event = await asyncio.wait_for(anext(events), GUARD)
            assert (event.data, event.event, event.id) == (expected, "message", cursor)
        for value in VALUES.values():
            await server.site.arun("publish(channel, {'value': value})", channel=name, value=value)
            event = await asyncio.wait_for(anext(events), GUARD)
            assert event.json() == {"value": value}
            # Whoever cuts lines with str.splitlines() has one line all the same.
            assert len(event.data.splitlines()) == 1
        for kind in ("update", "événement", " spaces ", "a:b", "x" * 100, "data", "\u2028"):
            await server.site.apublish(name, "typed", event=kind)
            assert (await asyncio.wait_for(anext(events), GUARD)).event == kind


async def test_an_envelope_carries_texts_and_types_whole(server: Server, name: str) -> None:
    """With `envelope=1` every text comes back equal, line ends and all, with its channel and type."""
    # promise 17
    stream = await RawStream.open(server.port, stream_path(name, envelope="1"))
    try:
        await stream.begin()
        for text, _ in TEXTS.values():
            await server.site.apublish(name, text, event="kind of\u2028")
            event = await stream.next()
            assert event.event == "message"
            assert event.json() == {"channel": name, "event": "kind of\u2028", "data": text}
    finally:
        stream.abort()


@pytest.mark.parametrize("bad", ["a\nb", "a\rb", "a\x00b", "a\r\ndata: injected\r\n\r\n", "\n", "\x00"])
async def test_a_type_cannot_inject_a_field(bad: str, server: Server, name: str) -> None:
    """CR, LF and NUL in a type are refused, in code and on the command line, and nothing is written."""
    # promise 17
    async with opened(server, name) as (stream, *_):
        refused = await server.site.arun(
            """
            from events import InvalidEvent

            try:
                publish(channel, "data", event=event)
            except InvalidEvent as error:
                result = str(error)
            """,
            channel=name,
            event=bad,
        )
        assert "CR, LF or NUL" in refused
        if "\x00" not in bad:
            # Which no command line can carry.
            arguments = ("publish_event", name, "data", "--event", bad)
            done = await asyncio.to_thread(server.site.manage, *arguments, check=False)
            assert done.returncode != 0
            assert "CR, LF or NUL" in done.stderr
            assert "Traceback" not in done.stderr
        await server.site.apublish(name, "end")
        assert await stream.until("end") == []
        assert b"injected" not in stream.body


# Rights


@on_every_engine
async def test_switching_a_channel_off_ends_its_open_streams(server: Server) -> None:
    """Streams of a channel that is switched off are told not to come back and end; nobody gets in any more."""
    name = f"switched-{uuid.uuid4().hex}"
    await make_channel(server.site, name, access="public")
    await wait_open(server, name)
    bystander = f"public.{uuid.uuid4().hex}"
    async with opened(server, name, count=2) as streams, opened(server, bystander) as others:
        await server.site.arun("row = Channel.objects.get(name=name); row.is_active = False; row.save()", name=name)
        for stream in streams:
            event = await stream.next(5)
            assert (event.event, event.json(), event.id) == ("stream-closed", {"reason": "switched-off"}, "")
            assert await stream.rest(5)
            assert stream.ended

        async def refused_by_all() -> bool:
            statuses = await asyncio.gather(*(server.aget(stream_path(name)) for _ in range(4 * server.workers)))
            return {status for status, _ in statuses} == {403}

        for _ in range(2):
            await until(refused_by_all, "every worker refuses", guard=5)
        await server.site.apublish(bystander, "still open")
        for stream in others:
            assert (await stream.next()).data == "still open"


async def make_channel(site: Site, name: str, **fields: Any) -> None:
    """Make a channel in the site's other process."""
    await site.arun(
        "row = Channel(name=name, **fields); row.full_clean(); row.save()",
        name=name,
        fields={"access": "public", "history_events": None, **fields},
    )


async def change_channel(site: Site, name: str, **fields: Any) -> float:
    """Change a channel in the site's other process; the time at which that was done."""
    at: float = await site.arun(
        """
        row = Channel.objects.get(name=name)
        for field, value in fields.items():
            setattr(row, field, value)
        row.full_clean()
        row.save()
        result = time.time()
        """,
        name=name,
        fields=fields,
    )
    return at


# Interval messages

#: The number of the message and when it was due, in seconds since 1970.
NUMBERED = "{{ n }} {{ now.timestamp }}"


def number_and_due(event: ReceivedEvent) -> tuple[int, float]:
    number, due = event.data.split()
    return int(number), float(due)


@pytest.fixture
def deployment(tmp_path: Path) -> Iterator[tuple[Site, list[Server]]]:
    """One database under two uvicorn workers and a daphne."""
    with closing(Site(tmp_path)) as site:
        servers = [site.start(kind, EVENTS_TEST_MAX_LATENESS="30") for kind in ("uvicorn-2", "daphne")]
        yield site, servers
        for server in servers:
            print(server.log()[-4000:])
            assert "Traceback" not in server.log()


async def test_three_processes_make_each_interval_message_once(deployment: tuple[Site, list[Server]]) -> None:
    """
    Ten messages a second for six seconds, on a grid, each once on every stream; none while nobody watches.

    Before that a second in which each process loads what it needs for the first time: whoever claims a message there
    may publish it after another's next one. Each comes once all the same.
    """
    site, (uvicorn, daphne) = deployment
    await make_channel(site, "grid", source="template", template=NUMBERED, interval=0.1)
    await make_channel(site, "witness", source="template", template=NUMBERED, interval=0.1)
    await asyncio.gather(wait_open(uvicorn, "grid"), wait_open(daphne, "grid"))
    async with opened(uvicorn, "grid", count=2) as first, opened(daphne, "grid", count=2) as second:
        streams = [*first, *second]
        assert len({stream.process for stream in streams}) == 3
        loading = await asyncio.gather(*(read_numbers(stream, 10) for stream in streams))
        seen = await asyncio.gather(*(read_numbers(stream, 60) for stream in streams))
        for before, events in zip(loading, seen, strict=True):
            every = sorted(number for number, _ in [*before, *events])
            assert every == list(range(every[0], every[0] + len(every)))
            numbers = [number for number, _ in events]
            assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))
            tenths = [round(due * 10, 3) for _, due in events]
            assert all(tenth == int(tenth) for tenth in tenths), "not on the grid"
            assert tenths == [tenths[0] + index for index in range(len(tenths))], "some were missed"
        # The streams agree on which message is which.
        assert len({pair for events in seen for pair in events}) == len(
            {number for events in seen for number, _ in events}
        )

    # Nobody watches now. The other channel's messages measure the time in which there is none.
    async def nobody() -> bool:
        states = [await server.ajson("/debug/") for server in (uvicorn, uvicorn, uvicorn, uvicorn, daphne)]
        return all(state["streams"] == 0 for state in states)

    await until(nobody, "all have gone")
    async with opened(daphne, "witness") as (stream,):
        await read_numbers(stream, 3)
        last = site.query("SELECT number FROM events_tick WHERE channel = 'grid'")
        await read_numbers(stream, 10)
        assert site.query("SELECT number FROM events_tick WHERE channel = 'grid'") == last


async def read_numbers(stream: RawStream, count: int) -> list[tuple[int, float]]:
    return [number_and_due(await stream.next()) for _ in range(count)]


async def test_a_changed_interval_takes_effect_within_a_second(server: Server) -> None:
    """Another process changes a channel from 1 s to 0.2 s, and open streams of every worker speed up."""
    name = f"interval-{uuid.uuid4().hex}"
    await make_channel(server.site, name, source="template", template=NUMBERED, interval=1)
    await wait_open(server, name)
    async with opened(server, name) as streams:
        for stream in streams:
            (_, one), (_, two) = await read_numbers(stream, 2)
            assert round(two - one, 3) == 1
        changed = await change_channel(server.site, name, interval=0.2)
        for stream in streams:
            before = await read_numbers(stream, 1)
            while True:
                after = await read_numbers(stream, 1)
                if round(after[0][1] - before[0][1], 3) == 0.2:
                    break
                before = after
            # The second in which it must happen, and one interval.
            assert before[0][1] <= changed + 1.2
            steady = await read_numbers(stream, 5)
            assert {round(two[1] - one[1], 3) for one, two in pairwise(steady)} == {0.2}
        changed = await change_channel(server.site, name, interval=86_400)
        await change_channel(server.site, name, source="")
        await server.site.apublish(name, "end")
        for stream in streams:
            late = [event for event in await stream.until("end") if number_and_due(event)[1] > changed + 1.2]
            assert late == []


async def test_a_source_that_raises_is_reported_and_stops_nothing_else(servers: Servers) -> None:
    """Its error is logged and kept for the admin, other channels go on, and it is tried again at the next tick."""
    server = servers["daphne"]
    site = server.site
    mark = server.mark()
    name, other = f"sensor-{uuid.uuid4().hex}", f"well-{uuid.uuid4().hex}"
    await make_channel(site, name, source="test-sensor", interval=0.1)
    await make_channel(site, other, source="template", template=NUMBERED, interval=0.1)
    await wait_open(server, other)
    await wait_open(server, name)
    broken = site.folder / f"broken-{name}"
    async with opened(server, name) as (stream,), opened(server, other) as (well,):
        assert (await stream.next()).json() == {"celsius": 21}
        broken.touch()

        async def failed() -> list[Any]:
            return site.query("SELECT error, number FROM events_tick WHERE channel = ? AND error != ''", name)

        ((error, number),) = await until(failed, "the error is kept")
        assert error == "RuntimeError: the sensor is gone"
        log = server.log(mark)
        assert f"a source failed, trying again at the next tick: channel={name} source=test-sensor" in log
        assert "RuntimeError: the sensor is gone" in log
        numbers = [pair[0] for pair in await read_numbers(well, 10)]
        assert numbers == list(range(numbers[0], numbers[0] + 10))

        async def tried_again() -> bool:
            ((_, now),) = await failed()
            return bool(now >= number + 3)

        await until(tried_again, "it was tried again, and again")
        broken.unlink()
        have = len(stream.events)
        while len(stream.events) < have + 3:
            assert (await stream.next()).json() == {"celsius": 21}

        async def forgiven() -> bool:
            return not await failed()

        await until(forgiven, "the error is taken away")


async def test_a_server_back_from_sleep_sends_no_burst(servers: Servers) -> None:
    """A process that did not run for three seconds does not make up for the thirty messages it missed."""
    server = servers["uvicorn-2"]
    name = f"sleep-{uuid.uuid4().hex}"
    await make_channel(server.site, name, source="template", template=NUMBERED, interval=0.1)
    await wait_open(server, name)
    async with opened(server, name) as streams:
        for stream in streams:
            await read_numbers(stream, 5)
        server.suspend()
        asleep = time.time()
        try:
            # Nothing can be waited for: it is the time itself that must pass.
            await asyncio.sleep(3)
        finally:
            awake = time.time()
            server.resume()
        for stream in streams:
            seen: list[tuple[int, float]] = []
            while not seen or seen[-1][1] < awake + 1:
                seen += await read_numbers(stream, 1)
            # One may have been under way when sleep came, in each of the two.
            assert len([due for _, due in seen if asleep + 0.2 < due < awake]) <= 2
            assert len([due for _, due in seen if awake <= due < awake + 0.95]) <= 10
            numbers = [number for number, _ in seen]
            assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))

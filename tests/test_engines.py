"""What streams of a real server go through when the engine under their log fails, and what they get all the same."""

from __future__ import annotations

import asyncio
import json
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, ExitStack, closing
from typing import TYPE_CHECKING, Any

import pytest

from .conftest import require_engine
from .engines import EVERY_WRITE, Engine, MariaDB, PgBouncer, PostgreSQL, Redis
from .plugins import require_program
from .proxy import Proxy
from .servers import GUARD, OnMariaDB, OnPostgreSQL, OnRedis, Site, Worker, check_log, opened, until

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator
    from pathlib import Path

    from .servers import RawStream

#: Only clients of servers run here.
pytestmark = pytest.mark.unmeasured

#: The backends' `timeout` here, in seconds. Short, but not so short that a busy machine would seem to be a fault.
TIMEOUT = 2.0
#: Seconds for an engine to come back, and for everybody to notice.
LONG_GUARD = 60.0
#: Streams that say twice a second that they are open.
SETTINGS = json.dumps({"KEEPALIVE": 0.5})
KEEPALIVE = b":\n"

#: Publishes texts one after the other, each until it is taken, and returns how often that was refused.
INSIST = """
from events import BackendUnavailable

result = 0
for text in texts:
    while True:
        try:
            publish(channel, text, key=f"{channel} {text}")
            break
        except BackendUnavailable:
            result += 1
            time.sleep(0.02)
"""
#: Tries to publish, and returns why that was not possible.
TRY = """
from events import BackendUnavailable

try:
    publish(channel, "refused", key=f"{channel} refused")
except BackendUnavailable as error:
    result = str(error)
"""


def make_ground(name: str) -> OnPostgreSQL | OnMariaDB | OnRedis:
    """A private engine, not started, to put a site on."""
    if name == "postgresql":
        require_engine(PostgreSQL, "psycopg")
        return OnPostgreSQL(PostgreSQL(), timeout=TIMEOUT)
    if name == "mariadb":
        require_engine(MariaDB, "MySQLdb")
        return OnMariaDB(MariaDB(), timeout=TIMEOUT)
    require_engine(Redis, "redis")
    # What was acknowledged must survive a kill, as it does on the others.
    return OnRedis(Redis(*EVERY_WRITE), timeout=TIMEOUT)


class Stand:
    """
    An engine that tests may break, and a site on it with a server of two workers.

    The server, and the process `inside`, reach the engine through a proxy; the site's own other process does not.
    """

    def __init__(self, name: str, folder: Path) -> None:
        self._ends = ExitStack()
        self._inside: Worker | None = None
        ground = make_ground(name)
        try:
            self.engine: Engine = self._ends.enter_context(ground.engine)
            self.proxy = self._ends.enter_context(Proxy(self.engine.port))
            self.site = self._ends.enter_context(closing(Site(folder, ground, EVENTS_TEST_SETTINGS=SETTINGS)))
            through_proxy = ground.environment(self.site, self.proxy.port)
            self.server = self.site.start("uvicorn-2", None, **through_proxy)
            self._inside_environment = {**self.site.environment, **through_proxy}
        except BaseException:
            self._ends.close()
            raise

    async def inside(self, code: str, **values: Any) -> Any:
        """Run code in a process that reaches the engine through the proxy, and that stays for the next call."""
        if self._inside is None:
            self._inside = Worker(self._inside_environment, self.site.folder / "inside.log")
        return await asyncio.to_thread(self._inside.run, code, LONG_GUARD, **values)

    def restore(self) -> None:
        """Take back what a test has done."""
        if self._inside is not None:
            self._inside.close()
            self._inside = None
        self.proxy.heal()
        self.engine.resume()
        if self.engine.process is None:
            self.engine.start()

    def close(self) -> None:
        self._ends.close()


@pytest.fixture(scope="module")
def stands(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Stand]]:
    made: dict[str, Stand] = {}

    def get(name: str) -> Stand:
        if name not in made:
            made[name] = Stand(name, tmp_path_factory.mktemp(name))
        return made[name]

    yield get
    with ThreadPoolExecutor() as pool:
        list(pool.map(Stand.close, made.values()))


@pytest.fixture(params=["postgresql", "mariadb", "redis"])
def stand(request: pytest.FixtureRequest, stands: Callable[[str], Stand]) -> Iterator[Stand]:
    """An engine with its site, which works again when the test has ended."""
    stand = stands(request.param)
    mark = stand.server.mark()
    yield stand
    stand.restore()
    check_log(stand.server, mark)


async def stays_open(stream: RawStream) -> None:
    """Nothing but keep-alives comes; three of them, since the first may have been on its way."""
    for _ in range(3):
        assert await stream.read() == KEEPALIVE


async def received(stream: RawStream, count: int) -> list[str]:
    """
    The first so many texts that the stream ever got, and it got nothing else: no reset, and nothing twice.

    What was refused for want of an answer may have been published even so: at most once, for it had a key.
    """
    while len(texts := [event.data for event in stream.events if event.data != "refused"]) < count:
        await stream.next(LONG_GUARD)
    assert {event.event for event in stream.events} == {"message"}
    assert len(stream.events) <= len(texts) + 1
    positions = [int(event.id.partition("-")[2]) for event in stream.events]
    assert positions == sorted(set(positions))
    return texts


async def assert_refused(stand: Stand, name: str) -> None:
    """Publishing says what is wrong instead of pretending: in a process of its own, and in one that has streams."""
    reason, (status, body) = await asyncio.gather(
        stand.inside(TRY, channel=name),
        stand.server.aget(f"/publish/?channel={name}&data=refused&key={name}%20refused"),
    )
    assert reason, "it was published"
    assert status == 503, body


async def go_through(
    stand: Stand, name: str, fault: Callable[[], Awaitable[None]], mend: Callable[[], Awaitable[None]]
) -> None:
    """Streams that are open before, while `fault` has been done, and after `mend`, which publishes "meanwhile"."""
    async with AsyncExitStack() as exits:
        old = await exits.enter_async_context(opened(stand.server, name, count=2))
        await stand.inside(INSIST, channel=name, texts=["before"])
        for stream in old:
            assert (await stream.next()).data == "before"
        await fault()
        # At once, and when whatever a process remembers has grown old.
        await asyncio.gather(assert_refused(stand, name), *(stays_open(stream) for stream in old))
        await assert_refused(stand, name)
        await mend()
        await stand.inside(INSIST, channel=name, texts=["after"])
        for stream in old:
            assert await received(stream, 3) == ["before", "meanwhile", "after"]
        # And with streams that are new to it.
        new = await exits.enter_async_context(opened(stand.server, name))
        await stand.site.arun(INSIST, channel=name, texts=["end"])
        for stream in old:
            assert (await received(stream, 4))[3] == "end"
        for stream in new:
            assert (await stream.next(LONG_GUARD)).data == "end"


async def test_streams_live_through_the_death_of_an_engine(stand: Stand, name: str) -> None:
    """Killed and started again: streams stay open, publishing says no meanwhile, and then all goes on."""
    # promise 18

    async def fault() -> None:
        await asyncio.to_thread(stand.engine.kill)

    async def mend() -> None:
        await asyncio.to_thread(stand.engine.start)
        await stand.site.arun(INSIST, channel=name, texts=["meanwhile"])

    await go_through(stand, name, fault, mend)


@pytest.mark.parametrize("seconds", [5, *(pytest.param(seconds, marks=pytest.mark.nightly) for seconds in (25, 60))])
async def test_streams_live_through_an_engine_that_stands_still(stand: Stand, name: str, seconds: int) -> None:
    """Connections stay open and nothing answers: publishing gives up, streams do not."""
    # promise 18
    over: list[asyncio.Future[None]] = []

    async def fault() -> None:
        await asyncio.to_thread(stand.engine.pause)
        # How long it stands still is what is tested.
        over.append(asyncio.ensure_future(asyncio.sleep(seconds)))

    async def mend() -> None:
        await over[0]
        await asyncio.to_thread(stand.engine.resume)
        await stand.site.arun(INSIST, channel=name, texts=["meanwhile"])

    await go_through(stand, name, fault, mend)


async def test_streams_live_through_a_network_that_says_nothing(stand: Stand, name: str) -> None:
    """Packets vanish: publishing gives up, and what others publish meanwhile reaches the old streams in the end."""
    # promise 18

    async def fault() -> None:
        stand.proxy.cut()
        await stand.site.apublish(name, "meanwhile")

    async def mend() -> None:
        stand.proxy.heal()

    await go_through(stand, name, fault, mend)


@pytest.mark.parametrize("stand", ["postgresql"], indirect=True)
async def test_a_hundred_streams_stay_while_postgresql_restarts(stand: Stand, name: str) -> None:
    """Somebody publishes all the time: each of 100 streams gets all of it, once, in order, and none ends."""
    # promise 18
    async with opened(stand.server, name, count=50) as streams:
        assert len(streams) == 100
        texts = [str(number) for number in range(200)]
        publishing = asyncio.create_task(
            stand.site.arun(INSIST + "    time.sleep(0.01)", LONG_GUARD, channel=name, texts=texts)
        )
        assert (await streams[0].next()).data == "0"
        await asyncio.to_thread(stand.engine.restart)
        refused = await publishing
        for stream in streams:
            assert await received(stream, 200) == texts
        assert refused > 0


# Redis forgets


class Forgetful:
    """A Redis that keeps nothing on disk by itself, and a server of two workers on it."""

    def __init__(self, folder: Path) -> None:
        require_engine(Redis, "redis")
        self._ends = ExitStack()
        self.engine = self._ends.enter_context(Redis())
        self.site = self._ends.enter_context(closing(Site(folder, OnRedis(self.engine, timeout=TIMEOUT))))
        self.server = self.site.start("uvicorn-2")

    async def command(self, *words: str) -> None:
        def do() -> None:
            import redis

            with redis.Redis.from_url(self.engine.url) as client:
                client.execute_command(*words)

        await asyncio.to_thread(do)


@pytest.fixture(scope="module")
def shared_forgetful(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forgetful]:
    forgetful = Forgetful(tmp_path_factory.mktemp("forgetful"))
    with closing(forgetful._ends):
        yield forgetful


@pytest.fixture
def forgetful(shared_forgetful: Forgetful) -> Iterator[Forgetful]:
    mark = shared_forgetful.server.mark()
    yield shared_forgetful
    check_log(shared_forgetful.server, mark)


async def assert_one_reset(forgetful: Forgetful, name: str, streams: list[RawStream], last: str) -> None:
    """Each stream is told once that something may be missing, and then gets what is published."""
    cursors = set()
    for stream in streams:
        reset = await stream.next(LONG_GUARD)
        assert reset.event == "stream-reset"
        assert (reset.json()["channels"], reset.json()["reason"]) == ([name], "epoch")
        cursors.add(reset.json()["cursor"])
    for text in ("one", "two"):
        await forgetful.site.arun(INSIST, channel=name, texts=[text])
        for stream in streams:
            event = await stream.next()
            assert (event.event, event.data) == ("message", text)
    # A client of before, that comes back only now, is told too, once.
    async with opened(forgetful.server, name, cursor=last) as late:
        for stream in late:
            assert (await stream.next()).json()["reason"] == "epoch"
        # And one that was told goes on from there, without a word.
        async with opened(forgetful.server, name, cursor=cursors.pop()) as again:
            await forgetful.site.apublish(name, "three")
            for stream in (*streams, *late):
                assert (await stream.next()).data == "three"
            for stream in again:
                assert [(await stream.next()).data for _ in range(3)] == ["one", "two", "three"]


async def test_an_emptied_redis_is_one_reset(forgetful: Forgetful, name: str) -> None:
    """FLUSHALL under open streams: each gets one reset, and then it is live."""
    # promise 19
    async with opened(forgetful.server, name, count=3) as streams:
        last = await forgetful.site.apublish(name, "lost")
        for stream in streams:
            assert (await stream.next()).data == "lost"
        await forgetful.command("FLUSHALL")
        await assert_one_reset(forgetful, name, streams, last)


async def test_a_redis_restored_from_an_older_dump_is_one_reset(forgetful: Forgetful, name: str) -> None:
    """Killed, and started with a dump that lacks what streams have seen: one reset each, and then it is live."""
    # promise 19
    async with opened(forgetful.server, name, count=3) as streams:
        await forgetful.site.apublish(name, "dumped")
        await forgetful.command("SAVE")
        last = await forgetful.site.apublish(name, "lost")
        for stream in streams:
            assert [(await stream.next()).data for _ in range(2)] == ["dumped", "lost"]
        await asyncio.to_thread(forgetful.engine.kill)
        await asyncio.to_thread(forgetful.engine.start)
        await assert_one_reset(forgetful, name, streams, last)


# PgBouncer


class Pooler(PgBouncer):
    """PgBouncer for every database of the server, in transaction mode."""

    def prepare(self) -> None:
        super().prepare()
        path = self.folder / "pgbouncer.ini"
        path.write_text(path.read_text().replace("postgres = ", "* = ", 1).replace(" dbname=postgres", ""))


NO_NOTIFICATIONS = "no LISTEN/NOTIFY, polling"


@pytest.mark.parametrize("listens", [False, True])
async def test_behind_pgbouncer_it_polls_unless_it_may_listen_directly(
    listens: bool, postgresql_server: PostgreSQL, tmp_path: Path, name: str
) -> None:
    """Notifications do not get through: each worker says so once. With `listen_dsn` they take another way."""
    require_program("pgbouncer")
    ground = OnPostgreSQL(postgresql_server)
    with Pooler(postgresql_server) as pooler, closing(Site(tmp_path, ground)) as site:
        settings = json.loads(site.environment["EVENTS_TEST_DATABASE"])
        settings |= {"PORT": pooler.port, "DISABLE_SERVER_SIDE_CURSORS": True}
        backend = json.loads(site.environment["EVENTS_TEST_BACKEND"])
        if listens:
            # Whoever polled would find nothing before the test has failed.
            backend["OPTIONS"] = {
                "listen_dsn": f"host=127.0.0.1 port={postgresql_server.port} user=postgres dbname={site.name}",
                "poll_interval": 10 * GUARD,
            }
        server = site.start(
            "uvicorn-2",
            EVENTS_TEST_DATABASE=json.dumps(settings),
            EVENTS_TEST_BACKEND=json.dumps(backend),
        )
        async with opened(server, name, count=2) as streams:
            for text in ("by another process", "once more"):
                await site.apublish(name, text)
                for stream in streams:
                    assert (await stream.next()).data == text
            status, _ = await server.aget(f"/publish/?channel={name}&data=by-a-worker")
            assert status == 200
            for stream in streams:
                assert (await stream.next()).data == "by-a-worker"

        async def has_said_it() -> bool:
            return server.log().count(NO_NOTIFICATIONS) == (0 if listens else server.workers)

        try:
            await until(has_said_it, "each worker has said what it does")
        finally:
            check_log(server, 0)

"""Faults of the engines, each made with a real server of the test's own, which it kills, stops or cuts off."""

from __future__ import annotations

import asyncio
import threading
from contextlib import ExitStack, aclosing, suppress
from typing import TYPE_CHECKING, Any, ClassVar

import pytest
from django.db import connections, transaction

from events.backends.base import BaseEventBackend, Params
from events.backends.database import DatabaseBackend
from events.exceptions import BackendUnavailable
from tests.conftest import database, empty, let_go, require_engine
from tests.engines import EVERY_WRITE, Engine, MariaDB, PostgreSQL, Redis
from tests.proxy import Proxy
from tests.waiting import GUARD, until

from .contract import Follower, collect, in_threads, new, next_batch, off_loop, positions
from .elsewhere import Elsewhere, job

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from events.backends.base import StoredEvent

#: Seconds for a server to come back and for those who follow it to notice.
LONG_GUARD = 45
#: The backends' `timeout` here. Short, but not so short that a busy machine would seem to be a fault.
TIMEOUT = 2.0


def wait_for_threads(*names: str) -> None:
    """Those of a backend end by themselves, after what they are waiting for."""
    for thread in threading.enumerate():
        if thread.name in names:
            thread.join(LONG_GUARD)


class Place:
    """A private server, and logs on it: one that goes there directly, and others that go through a proxy."""

    kind: ClassVar[type[Engine]]
    driver: ClassVar[str]

    def __init__(self) -> None:
        require_engine(self.kind, self.driver)
        self.server = self.make_server()
        self.ends = ExitStack()
        self.backends: list[BaseEventBackend] = []

    def make_server(self) -> Engine:
        return self.kind()

    def open(self) -> None:
        """Start the server, or what a test left of it, with an empty log."""
        if not self.server.process:
            self.server.start()

    def backend(self, proxy: Proxy | None = None, timeout: float = TIMEOUT, **options: Any) -> BaseEventBackend:
        """A log on the server, by way of `proxy` if there is one."""
        raise NotImplementedError

    def finish(self) -> None:
        """End what a test has opened."""
        self.server.resume()
        for backend in self.backends:
            backend.close()
        self.backends.clear()
        wait_for_threads("events-tail", "follower")

    def close(self) -> None:
        wait_for_threads("events-reader")
        self.ends.close()
        self.server.close()


class DatabasePlace(Place):
    """The log in a table."""

    alias: str

    def open(self) -> None:
        super().open()
        if self.alias not in connections.settings:
            self.ends.enter_context(database(self.alias, self.server.settings))  # type: ignore[attr-defined]
        empty(self.alias)

    def backend(self, proxy: Proxy | None = None, timeout: float = TIMEOUT, **options: Any) -> DatabaseBackend:
        alias = self.alias
        if proxy is not None:
            alias = f"{self.alias}-{proxy.port}"
            connections.settings[alias] = {**connections.settings[self.alias], "PORT": proxy.port}
        options = {"database": alias, "trim_interval": None, "timeout": timeout, **options}
        self.backends.append(backend := DatabaseBackend(Params("default", options)))
        return backend

    def finish(self) -> None:
        super().finish()
        for alias in [alias for alias in connections.settings if alias.startswith(self.alias)]:
            let_go(alias)
            if alias != self.alias:
                del connections[alias]
                del connections.settings[alias]


class OnPostgreSQL(DatabasePlace):
    kind = PostgreSQL
    driver = "psycopg"
    alias = "faults-postgresql"


class OnMariaDB(DatabasePlace):
    kind = MariaDB
    driver = "MySQLdb"
    alias = "faults-mariadb"


class OnRedis(Place):
    kind = Redis
    driver = "redis"

    def make_server(self) -> Redis:
        # What was acknowledged must survive a kill, as it does on the others.
        return Redis(*EVERY_WRITE)

    def open(self) -> None:
        super().open()
        redis_command(self.server, "flushall")

    def backend(self, proxy: Proxy | None = None, timeout: float = TIMEOUT, **options: Any) -> BaseEventBackend:
        from events.backends.redis import RedisBackend

        url = self.server.url if proxy is None else self.server.url.replace(str(self.server.port), str(proxy.port))
        params = Params("default", {"url": url, "timeout": timeout, "trim_interval": None, **options})
        backend: BaseEventBackend = RedisBackend(params)
        self.backends.append(backend)
        return backend


def redis_command(server: Engine, *command: str) -> Any:
    import redis

    with redis.Redis.from_url(server.url) as client:
        return client.execute_command(*command)


PLACES: dict[str, type[Place]] = {"postgresql": OnPostgreSQL, "mariadb": OnMariaDB, "redis": OnRedis}


@pytest.fixture(scope="module")
def places(django_db_setup, django_db_blocker) -> Iterator[dict[str, Place]]:
    """The servers of these tests, each started by the first test that needs it."""
    opened: dict[str, Place] = {}
    with django_db_blocker.unblock():
        yield opened
        for place in opened.values():
            place.close()


@pytest.fixture
def place_of(places: dict[str, Place], django_db_blocker):
    """Gives a place by its name, with an empty log."""
    used: list[Place] = []

    def get(name: str) -> Place:
        if name not in places:
            places[name] = PLACES[name]()
        used.append(places[name])
        places[name].open()
        return places[name]

    with django_db_blocker.unblock():
        yield get
        for place in used:
            place.finish()


@pytest.fixture(params=list(PLACES))
def place(request: pytest.FixtureRequest, place_of: Callable[[str], Place]) -> Place:
    return place_of(request.param)


@pytest.fixture(params=["postgresql", "mariadb"])
def database_place(request: pytest.FixtureRequest, place_of: Callable[[str], Place]) -> DatabasePlace:
    place = place_of(request.param)
    assert isinstance(place, DatabasePlace)
    return place


def data_of(events) -> list[str]:
    return [event.data for event in events]


async def until_it_works(backend: BaseEventBackend, data: str) -> None:
    """Publish until the log takes it, once."""

    async def insist() -> None:
        while True:
            with suppress(BackendUnavailable):
                await backend.aappend([new(data=data, key=data)])
                return

    await asyncio.wait_for(insist(), LONG_GUARD)


async def assert_unavailable(backend: BaseEventBackend) -> None:
    """Nothing pretends, and nothing hangs."""
    asked = [
        backend.aappend([new(data="refused", key="refused")]),
        backend.aread(["news"], 0, 10),
        backend.alatest(["news"]),
        backend.ahead(),
    ]
    answers = await asyncio.wait_for(asyncio.gather(*asked, return_exceptions=True), LONG_GUARD)
    assert [type(answer) for answer in answers] == [BackendUnavailable] * 4, answers


def without_refused(events: list[StoredEvent]) -> list[str]:
    """A publish that was refused for want of an answer may have been done: at most once, and only with its key."""
    found = data_of(events)
    assert found.count("refused") <= 1
    return [data for data in found if data != "refused"]


class TestKilled:
    async def test_the_same_tail_goes_on_when_a_killed_server_is_back(self, place: Place) -> None:
        """Meanwhile publishing and reading raise; then everybody goes on, on the same log."""  # promise 18
        backend = place.backend()
        async with aclosing(backend.tail()) as batches:
            before = (await next_batch(batches)).head
            await backend.aappend([new(data="1")])
            found = await collect(batches, 1)
            await off_loop(place.server.kill)
            await assert_unavailable(backend)
            await assert_unavailable(backend)
            await off_loop(place.server.start)
            await backend.aappend([new(data="2")])
            with Elsewhere(backend, job("publish", name="elsewhere", count=1)) as processes:
                await off_loop(processes.results)
            found += await collect(batches, 2, LONG_GUARD)
        assert data_of(found) == ["1", "2", "elsewhere 0"]
        assert positions(found) == [1, 2, 3]
        assert (await backend.ahead()).epoch == before.epoch
        assert data_of((await backend.aread(["news"], 0, 10)).events) == ["1", "2", "elsewhere 0"]

    async def test_nothing_is_lost_or_doubled_for_publishers_that_insist(self, place: Place) -> None:
        """Killed twice while another process publishes with keys: the tail gets each event once, in order."""
        # promise 18
        backend = place.backend()
        async with aclosing(backend.tail()) as batches:
            await next_batch(batches)
            with Elsewhere(backend, job("insist", name="a", count=100, pause=0.005)) as processes:
                processes.go()
                found: list[StoredEvent] = []
                for enough in (15, 50):
                    found += await collect(batches, enough - len(found), LONG_GUARD)
                    await off_loop(place.server.kill)
                    await off_loop(place.server.start)
                found += await collect(batches, 100 - len(found), LONG_GUARD)
                (said,) = await off_loop(processes.results)
        assert data_of(found) == [f"a {number}" for number in range(100)]
        assert positions(found) == list(range(1, 101))
        assert said["refused"] > 0


class TestStopped:
    @pytest.mark.parametrize(
        "seconds", [5, *(pytest.param(seconds, marks=pytest.mark.nightly) for seconds in (25, 60))]
    )
    async def test_a_server_that_does_not_answer_for_a_while(self, place: Place, seconds: int) -> None:
        """Its connections stay open and are accepted, and nothing comes: publishing raises, then all goes on."""
        # promise 18
        backend = place.backend()
        async with aclosing(backend.tail()) as batches:
            await next_batch(batches)
            await backend.aappend([new(data="1")])
            found = await collect(batches, 1)
            with Elsewhere(backend, job("insist", name="a", count=5, pause=0.01)) as processes:
                await off_loop(place.server.pause)
                # How long it is away is what is tested.
                away = asyncio.ensure_future(asyncio.sleep(seconds))
                processes.go()
                await assert_unavailable(backend)
                await away
                await off_loop(place.server.resume)
                await until_it_works(backend, "2")
                (said,) = await off_loop(processes.results)
            seen: list[str] = []
            while len(seen) < 7:
                found += (await next_batch(batches, LONG_GUARD)).events
                seen = without_refused(found)
        assert positions(found) == list(range(1, len(found) + 1))
        assert seen[0] == "1"
        assert [data for data in seen if data.startswith("a")] == [f"a {number}" for number in range(5)]
        assert seen.count("2") == 1
        assert said["refused"] > 0


class TestCutOff:
    async def test_a_tail_notices_that_nothing_comes_through(self, place: Place) -> None:
        """Packets vanish and nobody says so: it connects again, and has what was published meanwhile."""  # promise 18
        direct = place.backend()
        with Proxy(place.server.port) as proxy:
            backend = place.backend(proxy, timeout=1)
            async with aclosing(backend.tail()) as batches:
                await next_batch(batches)
                await direct.aappend([new(data="1")])
                found = await collect(batches, 1)
                proxy.cut()
                await direct.aappend([new(data="2")])
                proxy.heal()
                found += await collect(batches, 1, LONG_GUARD)
                # Once more, while nothing at all comes through for longer than it waits.
                proxy.cut()
                await direct.aappend([new(data="3")])
                await assert_unavailable(backend)
                await assert_unavailable(backend)
                proxy.heal()
                found += await collect(batches, 1, LONG_GUARD)
                await direct.aappend([new(data="4")])
                found += await collect(batches, 1, LONG_GUARD)
        assert data_of(found) == ["1", "2", "3", "4"]

    async def test_publishing_raises_instead_of_waiting(self, place: Place) -> None:
        """On a connection that was cut, and on a new one that leads nowhere; then it works again."""  # promise 18
        direct = place.backend()
        with Proxy(place.server.port) as proxy:
            backend = place.backend(proxy, timeout=1)
            await backend.aappend([new(data="1")])
            assert (await backend.ahead()).position == 1
            proxy.cut()
            await assert_unavailable(backend)
            await assert_unavailable(backend)
            proxy.heal()
            await backend.aappend([new(data="2")])
            assert data_of((await backend.aread(["news"], 0, 10)).events) == ["1", "2"]
        assert data_of((await direct.aread(["news"], 0, 10)).events) == ["1", "2"]

    async def test_a_connection_that_was_reset_is_opened_again(self, place: Place) -> None:
        """Between two uses a proxy, or a server's own limit, ends what lay idle: nobody is bothered with that."""
        with Proxy(place.server.port) as proxy:
            backend = place.backend(proxy)
            async with aclosing(backend.tail()) as batches:
                await next_batch(batches)
                found: list[StoredEvent] = []
                for number in range(3):
                    await backend.aappend([new(data=str(number))])
                    found += await collect(batches, 1, LONG_GUARD)
                    assert (await backend.ahead()).position == number + 1
                    proxy.close_all()
        assert data_of(found) == ["0", "1", "2"]


class TestTransactions:
    async def test_a_publisher_killed_between_commit_and_numbering(self, database_place: DatabasePlace) -> None:
        """Committed is delivered, once, by whoever looks next."""  # promise 5
        backend = database_place.backend()
        async with aclosing(backend.tail()) as batches:
            await next_batch(batches)
            with Elsewhere(backend, job("die_before_numbering", data="last words")) as processes:
                assert await off_loop(processes.exit_codes) == [-9]
            found = await collect(batches, 1, LONG_GUARD)
            again = (await backend.aappend([new(key="last words")]))[0]
            await backend.aappend([new(data="next")])
            found += await collect(batches, 1)
        assert again.repeated
        assert data_of(found) == ["last words", "next"]
        assert positions(found) == [1, 2]

    def test_transactions_that_commit_in_the_reverse_order(self, database_place: DatabasePlace) -> None:
        """Who inserted first and commits last is read after the other, and by all in the same order."""  # promise 5
        backend = database_place.backend()
        follower = Follower(backend, 3)
        inserted, committed = threading.Event(), threading.Event()

        def first_in() -> str | None:
            with transaction.atomic(using=backend.database):
                (published,) = backend.append([new(data="first in")])
                inserted.set()
                assert committed.wait(GUARD)
            return published.id

        def last_in() -> str | None:
            assert inserted.wait(GUARD)
            with transaction.atomic(using=backend.database):
                (published,) = backend.append([new(data="last in")])
            # Nobody holds up those who publish outside of transactions either.
            backend.append([new(data="alone")])
            committed.set()
            return published.id

        first, last = in_threads(first_in, last_in)
        followed = follower.events()
        assert data_of(followed) == ["last in", "alone", "first in"]
        assert positions(followed) == [1, 2, 3]
        assert data_of(backend.read(["news"], 0, 10).events) == data_of(followed)
        epoch = backend.head().epoch
        assert (first, last) == (f"{epoch}-3", f"{epoch}-1")


@pytest.fixture
def primary(place_of: Callable[[str], Place]) -> Place:
    return place_of("postgresql")


async def test_a_standby_that_becomes_the_primary(primary: Place, caplog: pytest.LogCaptureFixture) -> None:
    """A PostgreSQL that only reads can be followed, says why it takes nothing, and takes it once it is promoted."""
    backend = primary.backend(poll_interval=0.05)
    assert isinstance(backend, DatabaseBackend)
    await backend.aappend([new(data="1")])
    await off_loop(primary.server.stop)
    (primary.server.folder / "data" / "standby.signal").touch()
    await off_loop(primary.server.start)
    async with aclosing(backend.tail()) as batches:
        assert (await next_batch(batches)).head.position == 1
        with pytest.raises(BackendUnavailable, match=r"nothing was published.*read-only transaction"):
            await backend.aappend([new(data="2")])
        assert data_of((await backend.aread(["news"], 0, 10)).events) == ["1"]
        await off_loop(promote, backend.database)
        await until_it_works(backend, "3")
        assert data_of(await collect(batches, 1, LONG_GUARD)) == ["3"]
        assert caplog.text.count("no LISTEN/NOTIFY, polling") == 1
        assert "during recovery" in caplog.text
        # The next connection is that of a primary.
        await off_loop(primary.server.restart)
        await until_it_works(backend, "4")
        assert data_of(await collect(batches, 1, LONG_GUARD)) == ["4"]
        await until(lambda: "notifications arrive again" in caplog.text)


def promote(alias: str) -> None:
    with connections[alias].cursor() as cursor:
        cursor.execute("SELECT pg_promote()")


PUBLISHERS, EACH, READERS = 8, 5000, 4


def assert_one_order(backend: BaseEventBackend) -> None:
    """8 processes publish 5,000 events each, one by one and many at once, while 4 read."""
    total = PUBLISHERS * EACH
    channels = [f"channel{number}" for number in range(10)]
    jobs = [
        *(
            job("publish", name=str(number), count=EACH, channels=channels, singles=100, batch=100)
            for number in range(PUBLISHERS)
        ),
        *[job("follow", count=total)] * READERS,
    ]
    with Elsewhere(backend, *jobs) as processes:
        processes.go()
        results = processes.results()
    first, *others = results[PUBLISHERS:]
    assert [position for position, _, _ in first] == list(range(1, total + 1))
    assert all(other == first for other in others)
    own: dict[str, list[str]] = {str(number): [] for number in range(PUBLISHERS)}
    for _, channel, data in first:
        name, number = data.split()
        assert channel == channels[int(number) % len(channels)]
        own[name].append(number)
    assert set(map(tuple, own.values())) == {tuple(map(str, range(EACH)))}


@pytest.fixture
def sqlite(tmp_path: Path, django_db_setup, django_db_blocker) -> Iterator[DatabaseBackend]:
    """A log in a file of its own: the one that all tests share does not shrink after tens of thousands of events."""
    settings = {**connections.settings["default"], "NAME": tmp_path / "faults.sqlite3"}
    with django_db_blocker.unblock(), database("faults-sqlite", settings) as alias:
        backend = DatabaseBackend(Params("default", {"database": alias, "trim_interval": None}))
        yield backend
        backend.close()
        let_go(alias)


class TestManyAtOnce:
    def test_every_reader_sees_every_event_once_in_one_order(self, place: Place) -> None:
        """8 publishers, 40,000 events, 4 readers, on a server."""  # promise 1
        # A log that is bounded by itself must hold what a reader on a busy machine has not read yet.
        options: dict[str, Any] = {"log_events": 50_000} if isinstance(place, OnRedis) else {}
        assert_one_order(place.backend(timeout=30, **options))

    def test_on_sqlite_too(self, sqlite: DatabaseBackend) -> None:
        """8 publishers, 40,000 events, 4 readers, on a file."""  # promise 1
        assert_one_order(sqlite)


def test_a_full_disk_takes_all_or_nothing(sqlite: DatabaseBackend) -> None:
    """SQLite's files may not grow: publishing raises, what was said to be published is there, and nothing else."""
    sqlite.append([new(data="before")])
    with Elsewhere(sqlite, job("fill_the_disk")) as processes:
        (said,) = processes.results()
    assert said["full"] is not None
    assert "nothing was published" in said["full"]
    found = sqlite.read(["news"], 0, 100_000).events
    assert [event.data.split()[0] for event in found] == ["before", *said["published"], "after"]
    assert positions(found) == list(range(1, len(found) + 1))


class TestRedisLosesItsLog:
    @pytest.fixture
    def place(self, place_of: Callable[[str], Place]) -> Place:
        return place_of("redis")

    async def test_an_emptied_redis_is_a_new_log(self, place: Place) -> None:
        """One batch says so, with a new epoch; from then on it is live."""  # promise 19
        backend = place.backend()
        async with aclosing(backend.tail()) as batches:
            await next_batch(batches)
            await backend.aappend([new(data="1"), new(data="2")])
            await collect(batches, 2)
            before = await backend.ahead()
            await off_loop(redis_command, place.server, "flushall")
            batch = await next_batch(batches, LONG_GUARD)
            assert list(batch.events) == []
            assert batch.head.epoch != before.epoch
            await backend.aappend([new(data="3")])
            after = await next_batch(batches)
            assert data_of(after.events) == ["3"]
            assert after.head == await backend.ahead()
            assert after.head.epoch == batch.head.epoch

    async def test_a_redis_restored_from_an_older_dump_is_a_new_log(self, place_of) -> None:
        """What came after the dump is gone, and nobody may take the old cursors for new ones."""  # promise 19

        class WithoutAppendOnlyFile(OnRedis):
            def make_server(self) -> Redis:
                return Redis()

        place = WithoutAppendOnlyFile()
        try:
            place.open()
            backend = place.backend()
            async with aclosing(backend.tail()) as batches:
                await next_batch(batches)
                await backend.aappend([new(data="1")])
                await off_loop(redis_command, place.server, "save")
                await backend.aappend([new(data="2"), new(data="3")])
                await collect(batches, 3)
                before = await backend.ahead()
                await off_loop(place.server.kill)
                await off_loop(place.server.start)
                batch = await next_batch(batches, LONG_GUARD)
                assert list(batch.events) == []
                assert batch.head.epoch != before.epoch
                await backend.aappend([new(data="4")])
                after = await next_batch(batches)
            assert data_of(after.events) == ["4"]
            assert after.head.epoch == batch.head.epoch
            found = await backend.aread(["news"], 0, 10)
            assert data_of(found.events) == ["1", "4"]
            assert found.head == after.head
        finally:
            place.finish()
            place.close()

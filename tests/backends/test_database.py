from __future__ import annotations

import asyncio
import logging
import os
import signal
import subprocess
import sys
import threading
from collections import Counter
from contextlib import aclosing, contextmanager

import pytest
from django.db import OperationalError, connection, connections, transaction
from django.db.backends.signals import connection_created

from events import rights, sources, ticks
from events.access import Question
from events.backends import connections as backend_connections
from events.backends import database
from events.backends.base import Params, Retention
from events.backends.connections import forks
from events.backends.database import DatabaseBackend
from events.backends.tails import SQLiteTail
from events.channels import channel_table
from events.exceptions import BackendUnavailable, InvalidEventBackend
from events.models import Channel, Event, Floor, IdempotencyKey, Log
from events.wire import Cursor
from tests.waiting import GUARD

from .contract import backend_contract, collect, in_forked_child, new, next_batch, positions

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def backend() -> DatabaseBackend:
    return DatabaseBackend(Params("default", {"trim_interval": None}))


def make_sqlite(backend: DatabaseBackend):
    yield backend
    backend.close()


TestDatabaseBackend = backend_contract(make_sqlite)


def make_another_engine(monkeypatch: pytest.MonkeyPatch):
    """
    What every engine understands: Django's own transactions, UPDATE and then SELECT, and polling.

    Run on SQLite, which is told that it is another one: no proof for MariaDB, but that nothing here needs SQLite.
    """
    monkeypatch.setattr(type(connections["default"]), "vendor", "another")
    backend = DatabaseBackend(Params("default", {"trim_interval": None, "poll_interval": 0.01}))
    yield backend
    backend.close()


TestAnotherEngine = backend_contract(make_another_engine)


def run_elsewhere(code: str, **kwargs) -> subprocess.CompletedProcess[str]:
    """Run Python in another process on this test's database."""
    start = "import django; django.setup()\n"
    return subprocess.run(
        [sys.executable, "-c", start + code], text=True, capture_output=True, timeout=60, check=False, **kwargs
    )


PUBLISH_ELSEWHERE = """
from events.backends.base import NewEvent, Params
from events.backends.database import DatabaseBackend
from events.backends.tails import SQLiteTail
backend = DatabaseBackend(Params("default", {"trim_interval": None}))
print(backend.append([NewEvent(channel="news", data="from elsewhere")])[0].id)
"""

DIE_AFTER_COMMIT = """
import os, signal
from django.db import transaction
from events.backends.base import NewEvent, Params
from events.backends.database import DatabaseBackend
from events.backends.tails import SQLiteTail
DatabaseBackend.number = lambda self: os.kill(os.getpid(), signal.SIGKILL)
with transaction.atomic():
    DatabaseBackend(Params("default")).append([NewEvent(channel="news", data="last words", key="k")])
"""


def test_a_rolled_back_transaction_publishes_nothing(backend: DatabaseBackend) -> None:
    """Neither an event nor its key is left of a transaction that rolled back."""  # promise 5
    with transaction.atomic():
        backend.append([new(key="k")])
        transaction.set_rollback(True)
    assert not Event.objects.exists()
    assert not IdempotencyKey.objects.exists()
    assert not backend.append([new(key="k")])[0].repeated


def test_a_committed_transaction_publishes_once(backend: DatabaseBackend) -> None:
    """The cursor is None while the transaction is open and is filled in when it commits."""  # promise 5
    with transaction.atomic():
        one, two = backend.append([new(data="1"), new(data="2")])
        assert (one.id, two.id) == (None, None)
        assert backend.read(["news"], 0, 10).events == []
    epoch = backend.head().epoch
    assert (one.id, two.id) == (f"{epoch}-1", f"{epoch}-2")
    assert [event.data for event in backend.read(["news"], 0, 10).events] == ["1", "2"]


def test_an_append_that_fails_inside_a_transaction_leaves_nothing_of_itself(
    backend: DatabaseBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All or none holds where the caller catches the error and commits the rest."""
    insert = DatabaseBackend._insert

    def fail_at_two(self, connection, rows):
        insert(self, connection, rows[:1])
        if len(rows) > 1:
            raise OperationalError("disk full")

    monkeypatch.setattr(DatabaseBackend, "_insert", fail_at_two)
    with transaction.atomic():
        with pytest.raises(BackendUnavailable, match="disk full"):
            backend.append([new(data="1"), new(data="2")])
        backend.append([new(data="3")])
    assert [event.data for event in backend.read(["news"], 0, 10).events] == ["3"]


def test_an_engine_that_names_no_rows_it_wrote(backend: DatabaseBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    """MySQL does not say which primary keys it gave: events are written one by one, and numbered in their order."""
    monkeypatch.setattr(type(connection.features), "can_return_rows_from_bulk_insert", False)
    with transaction.atomic():
        published = backend.append([new(data="1"), new(data="2"), new(data="3")])
    assert [event.data for event in backend.read(["news"], 0, 10).events] == ["1", "2", "3"]
    assert [event.id for event in published] == [f"{backend.head().epoch}-{number}" for number in (1, 2, 3)]


def test_a_key_used_inside_a_transaction(backend: DatabaseBackend) -> None:
    """The repeat gets the first event's cursor: at once where that is known, at the commit where it is not."""
    with transaction.atomic():
        one, two = backend.append([new(key="k"), new(key="k")])
        assert (two.id, two.repeated) == (None, True)
    assert one.id == two.id is not None
    with transaction.atomic():
        three = backend.append([new(key="k")])[0]
        assert (three.id, three.repeated) == (one.id, True)
    assert backend.append([new(key="k")])[0].id == one.id
    with transaction.atomic():
        four, five = backend.append([new(key="l")])[0], backend.append([new(key="l")])[0]
        assert [(each.id, each.repeated) for each in (four, five)] == [(None, False), (None, True)]
    assert four.id == five.id is not None
    # Also when the event is trimmed, which it was numbered for later than its key was written.
    backend.trim(lambda name: Retention(events=0))
    assert backend.append([new(key="k")])[0].id == one.id


def test_without_autocommit_the_next_one_numbers(backend: DatabaseBackend) -> None:
    """Where a site switches autocommit off by hand, its events are numbered by whoever comes next."""
    transaction.set_autocommit(False)
    try:
        result = backend.append([new()])[0]
        transaction.commit()
    finally:
        transaction.set_autocommit(True)
    assert result.id is None
    backend.number()
    assert positions(backend.read(["news"], 0, 10).events) == [1]


def test_a_transaction_that_commits_late_is_not_missed(backend: DatabaseBackend) -> None:
    """Who has read position 2 gets the event of a transaction that began earlier and committed later."""  # promise 5
    # SQLite lets one transaction write at a time, so the row is put where it would stand: a smaller id, no position.
    late = Event.objects.create(channel="news", type="message", data="late", is_json=False, created_at=0)
    Event.objects.filter(pk=late.pk).update(id=late.pk + 1)
    backend.append([new(data="early")])
    seen = backend.read(["news"], 0, 10)
    assert [event.data for event in seen.events] == ["early"]
    backend.number()
    assert [event.data for event in backend.read(["news"], seen.events[-1].position, 10).events] == ["late"]


def test_numbering_that_fails_after_commit_is_not_the_publishers_error(
    backend: DatabaseBackend, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The event is committed: the caller is not told otherwise, and the next numbering takes it along."""
    with monkeypatch.context() as patch:
        patch.setattr(DatabaseBackend, "_take", lambda *args: (_ for _ in ()).throw(OperationalError("locked")))
        with transaction.atomic():
            backend.append([new()])
    assert "not yet numbered" in caplog.text
    assert backend.read(["news"], 0, 10).events == []
    backend.number()
    assert positions(backend.read(["news"], 0, 10).events) == [1]


async def test_an_event_of_another_process_arrives(backend: DatabaseBackend) -> None:
    """The tail sees what another process publishes."""  # promise 1
    async with aclosing(backend.tail()) as batches:
        await next_batch(batches)
        printed = await asyncio.to_thread(run_elsewhere, PUBLISH_ELSEWHERE)
        (event,) = await collect(batches, 1)
    assert event.data == "from elsewhere"
    assert printed.stdout.strip().endswith(f"-{event.position}")


async def test_an_event_arrives_whose_publisher_was_killed_right_after_commit(
    backend: DatabaseBackend, caplog: pytest.LogCaptureFixture
) -> None:
    """Committed is delivered, once, by whoever looks next."""  # promise 5
    caplog.set_level(logging.INFO)
    async with aclosing(backend.tail()) as batches:
        await next_batch(batches)
        died = await asyncio.to_thread(run_elsewhere, DIE_AFTER_COMMIT)
        assert died.returncode == -signal.SIGKILL
        (event,) = await collect(batches, 1)
        assert event.data == "last words"
        assert "numbering events whose publisher did not" in caplog.text
        again = (await backend.aappend([new(key="k")]))[0]
        assert (again.repeated, again.id) == (True, str(await backend.ahead()))


def test_a_forked_child_publishes(backend: DatabaseBackend) -> None:
    """A child of a process that has published does so too."""  # promise 7
    backend.append([new(data="parent")])
    # What a server that forks does before: connections are not shared between processes.
    connections.close_all()
    child = os.fork()
    if child == 0:
        backend.append([new(data="child")])
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    assert [event.data for event in backend.read(["news"], 0, 10).events] == ["parent", "child"]


def test_a_process_that_forks_in_the_middle_of_a_trim(monkeypatch: pytest.MonkeyPatch) -> None:
    """The child publishes at once, and trims when its time comes; the trim in the parent goes on to its end."""
    # promise 7
    # What other tests have left may be inside SQLite at the fork, which no child gets over.
    for thread in threading.enumerate():
        if thread.name in ("events-reader", "events-tail"):
            thread.join(GUARD)
    # On a disk that is busy with much else a commit may take seconds.
    monkeypatch.setattr(backend_connections, "FORK_PATIENCE", 50)
    monkeypatch.setattr(database, "CHUNK", 2)
    backend = DatabaseBackend(Params("default", {"trim_interval": 1000}))
    backend.append([new(data=str(number)) for number in range(10)])
    trims, has_forked = threading.Event(), threading.Event()
    opened: list[object] = []

    def delete(execute, sql, params, many, context):
        found = execute(sql, params, many, context)
        # Once: in the parent the trim goes on while the child writes.
        if sql.startswith("DELETE") and not trims.is_set():
            trims.set()
            # The lock is SQLite's to give until this transaction ends: by then the fork waits, or has been.
            while not forks._changed._waiters and not has_forked.wait(0.001):  # type: ignore[attr-defined]
                pass
        return found

    def watch(connection, **kwargs) -> None:
        if threading.current_thread().name == "events-trim":
            opened.append(connection)
            connection.execute_wrappers[:] = [delete]

    def publish_and_trim() -> None:
        # After the first chunk, or a later one of the parent's.
        assert Event.objects.count() <= 8
        backend.append([new(data="child")])
        begun = threading.Event()
        backend._trim_in_background = lambda *args: begun.set()  # type: ignore[method-assign]
        backend._next_trim = 0
        backend.maintain(lambda name: Retention(events=1))
        assert begun.wait(GUARD)

    connection_created.connect(watch)
    try:
        backend._next_trim = 0
        backend.maintain(lambda name: Retention(events=1))
        assert trims.wait(GUARD)
        in_forked_child(publish_and_trim)
        has_forked.set()
        assert backend._trimming.acquire(timeout=GUARD)
    finally:
        has_forked.set()
        connection_created.disconnect(watch)
    assert [event.data for event in backend.read(["news"], 0, 20).events] == ["9", "child"]
    # The child has inherited none.
    assert len(opened) == 2


def test_what_ticks_and_tails_do_holds_forks_off(backend: DatabaseBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    """But not what the site's own source does meanwhile, which may take long or fork itself."""
    noted: list[tuple[str, bool]] = []

    def note(what: str, result: object):
        def noting(*args, **kwargs):
            noted.append((what, threading.get_ident() in forks._busy))
            return result

        return noting

    monkeypatch.setattr(ticks, "_claim", note("claim", 1))
    monkeypatch.setattr(sources, "make", note("make", "made"))
    monkeypatch.setattr(ticks, "publish", note("publish", None))
    assert ticks.tick(Channel(name="clock", source="clock", interval=1), "clock", 1.0)
    monkeypatch.setattr(backend, "unnumbered", note("look", {1}))
    monkeypatch.setattr(backend, "number", note("number", None))
    tail = SQLiteTail(backend, asyncio.new_event_loop())
    tail.loop.close()
    tail.unnumbered = {1}
    assert tail._number_orphans(connection, None)
    expected = [("claim", True), ("make", False), ("publish", True), ("look", True), ("number", True)]
    assert noted == expected
    # A read, too: SQLite has locks of its own in the memory that a child inherits.
    monkeypatch.setattr(backend, "log_row", note("read", Cursor("e", 1)))
    tail._read(connection)
    assert asyncio.run(backend.ahead()) == Cursor("e", 1)
    assert noted[len(expected) :] == [("read", True), ("read", True)]
    assert threading.get_ident() not in forks._busy


def test_what_the_apps_own_threads_ask_holds_forks_off(make_channel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rights, channels and schedules are read all the time: a child would wait for the locks of SQLite's own memory."""
    make_channel("news")
    ticker = ticks.Ticker()
    rounds = iter([True, False])
    monkeypatch.setattr(ticker, "_has_work", lambda: next(rounds))
    ticker._woken.wait = lambda timeout=None: True  # type: ignore[method-assign]
    noted: dict[str, list[bool]] = {}

    def note(execute, *args):
        noted[what].append(threading.get_ident() in forks._busy)
        return execute(*args)

    def close() -> None:
        noted[what].append(threading.get_ident() in forks._busy)

    monkeypatch.setattr(connection, "close", close)
    asks = {
        "channels": channel_table.refresh_and_close,
        "rights": lambda: rights._ask([Question(None, ["news"])]),
        "ticker": ticker._run,
    }
    for what, ask in asks.items():
        noted[what] = []
        channel_table.invalidate()
        with connection.execute_wrapper(note):
            ask()
    # Queries, and at the end the closing of the connection.
    assert all(len(found) >= 2 and all(found) for found in noted.values()), noted
    assert threading.get_ident() not in forks._busy


@contextmanager
def locked_by_another():
    """Another connection holds SQLite's write lock."""
    held = threading.Event()
    release = threading.Event()

    def hold() -> None:
        with transaction.atomic():
            Log.objects.update(trimmed_at=0)
            held.set()
            release.wait(GUARD)
        connections.close_all()

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait(GUARD)
    try:
        yield
    finally:
        release.set()
        thread.join(GUARD)


def test_newest_does_not_walk_through_the_log(backend: DatabaseBackend) -> None:
    """However seldom a channel has an event: SQLite takes no step for those of the others."""
    backend.append([new("seldom")])
    backend.append([new(f"often.{number % 3}") for number in range(5000)])
    raw, steps = connection.connection, []
    raw.set_progress_handler(lambda: steps.append(100), 100)
    try:
        assert positions(backend.newest(["seldom", "often.0"], 50)) == [*range(4853, 5001, 3)]
    finally:
        raw.set_progress_handler(None, 0)
    # Some for each of the fifty.
    assert sum(steps) < 5000


def test_newest_of_large_events_are_fewer(backend: DatabaseBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    """A page shows the beginning of each, and anybody may ask for it: the database hands out no more than that."""
    monkeypatch.setattr(database, "NEWEST_CHARACTERS", 1000)
    # Of 302 channels more than two statements ask.
    names = [f"c{number:03}" for number in range(302)]
    sizes = [10, 600, 300, 500, 300, 200]
    backend.append([new(name, "ü" * size) for name, size in zip([*names[:3], *names[-3:]], sizes, strict=True)])
    fetched: list[str | None] = []
    ask = database._rows

    def note(*args) -> list:
        rows = ask(*args)
        fetched.extend(row[3] for row in rows)
        return rows

    monkeypatch.setattr(database, "_rows", note)
    for channels, expected in ((names[:3], [1, 2, 3]), (names[1:3], [2, 3]), (names, [4, 5, 6])):
        assert positions(backend.newest(channels, 50)) == expected
    assert positions(backend.newest(names, 2)) == [5, 6]
    fetched.clear()
    backend.append([new("c001", "x" * 700) for _ in range(4)])
    backend.append([new("c001", "small")])
    assert [event.data for event in backend.newest(["c001"], 50)] == ["x" * 700, "x" * 700, "small"]
    assert Counter(fetched) == {"small": 1, None: 5, "x" * 700: 2}


def test_newest_of_more_channels_than_one_statement_takes(backend: DatabaseBackend) -> None:
    """SQLite refuses a UNION of more than 500 parts."""
    names = [f"c{number}" for number in range(520)]
    backend.append([new(name) for name in names])
    assert positions(backend.newest(names, 3)) == [518, 519, 520]
    assert positions(backend.newest(names[::-1], 1000)) == [*range(1, 521)]


def test_a_log_that_cannot_be_written_says_so(backend: DatabaseBackend) -> None:
    """Publishing raises, and nothing is half-written."""
    backend.append([new()])
    with connection.cursor() as cursor:
        cursor.execute("PRAGMA busy_timeout = 1")
    try:
        with locked_by_another(), pytest.raises(BackendUnavailable, match=r"nothing was published.*locked"):
            backend.append([new(), new()])
    finally:
        connection.close()
    assert Event.objects.count() == 1


def test_a_full_disk_half_writes_nothing(backend: DatabaseBackend) -> None:
    """SQLite's own "database or disk is full", made by a limit on its pages, undoes all of the append."""
    backend.append([new()])
    with connection.cursor() as cursor:
        # Pages that other tests have left free would be taken first.
        cursor.execute("VACUUM")
        cursor.execute("PRAGMA page_count")
        pages = cursor.fetchone()[0]
        cursor.execute(f"PRAGMA max_page_count = {pages}")
    try:
        with pytest.raises(BackendUnavailable, match="full"):
            backend.append([new(data="x" * 1000) for _ in range(1000)])
    finally:
        connection.close()
    assert positions(backend.read(["news"], 0, 10).events) == [1]
    assert backend.append([new()])[0].id == f"{backend.head().epoch}-2"


@pytest.mark.parametrize("call", ["head", "read", "latest", "newest", "trim", "clear"])
def test_a_log_that_cannot_be_read_says_so(
    backend: DatabaseBackend, call: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every way of asking raises `BackendUnavailable` with the database's own words."""
    arguments = {
        "read": (["a"], 0, 1),
        "latest": (["a"],),
        "newest": (["a"], 1),
        "trim": (lambda name: Retention(),),
        "clear": (["a"],),
    }
    with monkeypatch.context() as patch:
        patch.setattr(
            "django.db.backends.utils.CursorWrapper.execute",
            lambda *args: (_ for _ in ()).throw(OperationalError("gone")),
        )
        with pytest.raises(BackendUnavailable, match="'default' says: gone"):
            getattr(backend, call)(*arguments.get(call, ()))


async def test_the_tail_goes_on_after_a_fault(
    backend: DatabaseBackend, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It says once that it cannot read, tries again, says that it can, and has skipped nothing."""
    faults = iter([OperationalError("gone"), ValueError("a bug")])
    failed, published, recovered = (threading.Event() for _ in range(3))
    look = SQLiteTail._look

    def sometimes(self, *args):
        failed.set()
        if not published.is_set():
            raise OperationalError("gone")
        for fault in faults:
            raise fault
        recovered.set()
        return look(self, *args)

    async with aclosing(backend.tail()) as batches:
        await next_batch(batches)
        monkeypatch.setattr(SQLiteTail, "_look", sometimes)
        (tail,) = backend._tails
        # A look that was under way already would see it before the first fault.
        await asyncio.to_thread(failed.wait, GUARD)
        await backend.aappend([new()])
        published.set()
        assert positions(await collect(batches, 1)) == [1]
    await asyncio.to_thread(tail.join, GUARD)
    assert recovered.is_set()
    assert caplog.text.count("the log cannot be read, trying again") == 1
    assert "the log can be read again" in caplog.text


async def test_a_first_look_that_finds_a_bug_shows_where(
    backend: DatabaseBackend, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """What is no fault of the database is logged with its traceback."""
    look = SQLiteTail._look
    faults = iter([ValueError("a bug")])

    def sometimes(self, *args):
        for fault in faults:
            raise fault
        return look(self, *args)

    monkeypatch.setattr(SQLiteTail, "_look", sometimes)
    async with aclosing(backend.tail()) as batches:
        await next_batch(batches)
        (tail,) = backend._tails
    await asyncio.to_thread(tail.join, GUARD)
    assert "ValueError: a bug" in caplog.text


async def test_a_log_that_was_flushed_is_a_new_one(backend: DatabaseBackend) -> None:
    """An empty database has a new epoch, and the tail says so."""
    await backend.aappend([new()])
    async with aclosing(backend.tail()) as batches:
        before = (await next_batch(batches)).head
        await asyncio.to_thread(
            run_elsewhere,
            "from events.models import Event, Log; Event.objects.all().delete(); Log.objects.all().delete()",
        )
        after = await next_batch(batches)
    assert after.head.epoch != before.epoch
    assert after.head.position == 0


async def test_a_log_that_went_back_is_a_new_one(backend: DatabaseBackend) -> None:
    """An older copy of the database gets a new epoch: its next numbers are those of events that are gone."""
    await backend.aappend([new(), new()])
    async with aclosing(backend.tail()) as batches:
        before = (await next_batch(batches)).head
        await asyncio.to_thread(
            run_elsewhere,
            "from events.models import Event, Log; Event.objects.filter(position=2).delete();"
            "Log.objects.update(head=1)",
        )
        after = await next_batch(batches)
    assert after.head.epoch != before.epoch
    assert after.head.position == 1


async def test_a_slow_loop_bounds_what_is_read_ahead(backend: DatabaseBackend) -> None:
    """The tail hands over two batches and waits until one is taken."""
    async with aclosing(backend.tail()) as batches:
        await next_batch(batches)
        (tail,) = backend._tails
        await backend.aappend([new() for _ in range(2500)])
        found = await collect(batches, 500)
        assert tail.batches.qsize() <= 2
        found += await collect(batches, 2000)
        assert positions(found) == list(range(1, 2501))


async def test_a_closed_tail_ends_its_thread(backend: DatabaseBackend) -> None:
    """Closing the generator ends the thread, and with it its connection."""
    async with aclosing(backend.tail()) as batches:
        await next_batch(batches)
        (tail,) = backend._tails
    await asyncio.to_thread(tail.join, GUARD)
    assert not tail.is_alive()
    assert not backend._tails


def test_a_tail_ends_when_its_loop_was_closed(backend: DatabaseBackend) -> None:
    """A loop that is closed with the generator open takes the thread with it."""

    left_open = []

    async def leave_open() -> None:
        left_open.append(backend.tail())
        await next_batch(left_open[0])

    loop = asyncio.new_event_loop()
    loop.run_until_complete(leave_open())
    loop.close()
    (tail,) = backend._tails
    backend.append([new()])
    tail.join(GUARD)
    assert not tail.is_alive()


async def test_a_batch_says_how_far_the_log_is_where_its_events_are_gone(backend: DatabaseBackend) -> None:
    """Events that were trimmed before they were read are a hole between two heads, which the hub looks for."""
    async with aclosing(backend.tail()) as batches:
        await next_batch(batches)
        await asyncio.to_thread(
            run_elsewhere,
            "from django.db import transaction\nfrom events.models import Log\nLog.objects.update(head=5)",
        )
        batch = await next_batch(batches)
    assert list(batch.events) == []
    assert batch.head.position == 5


class TestMaintain:
    def keep_one(self, name: str) -> Retention:
        return Retention(events=1)

    def trimmed(self) -> None:
        for thread in threading.enumerate():
            if thread.name == "events-trim":
                thread.join(GUARD)

    def test_it_trims_in_the_background_now_and_then(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """The first call after the interval trims on a thread of its own; the next ones do nothing."""
        backend = DatabaseBackend(Params("default", {"trim_interval": 1000}))
        backend.append([new(), new()])
        backend._next_trim = 0
        backend.maintain(self.keep_one)
        self.trimmed()
        assert Event.objects.count() == 1
        assert Floor.objects.get().position == 1
        backend.append([new()])
        backend.maintain(self.keep_one)
        self.trimmed()
        assert Event.objects.count() == 2

    def test_one_process_at_a_time(self) -> None:
        """Who comes within half an interval of another process's trim leaves it at that."""
        backend = DatabaseBackend(Params("default", {"trim_interval": 1000}))
        backend.append([new(), new()])
        Log.objects.update(trimmed_at=__import__("time").time())
        backend._next_trim = 0
        backend.maintain(self.keep_one)
        self.trimmed()
        assert Event.objects.count() == 2

    def test_it_can_be_switched_off(self) -> None:
        """With `trim_interval` None only the command trims."""
        backend = DatabaseBackend(Params("default", {"trim_interval": None}))
        backend.append([new(), new()])
        backend._next_trim = 0
        backend.maintain(self.keep_one)
        self.trimmed()
        assert Event.objects.count() == 2

    def test_a_trim_that_goes_on_is_not_begun_again(self) -> None:
        """However short the interval is."""
        backend = DatabaseBackend(Params("default", {"trim_interval": 1000}))
        backend.append([new(), new()])
        backend._next_trim = 0
        with backend._trimming:
            backend.maintain(self.keep_one)
            self.trimmed()
        assert Event.objects.count() == 2
        backend.maintain(self.keep_one)
        self.trimmed()
        assert Event.objects.count() == 1

    def test_a_child_trims_although_its_parent_was_trimming(self) -> None:
        """It has a lock that a thread of its parent's held, and not the thread. Without a fork: by its process id."""
        backend = DatabaseBackend(Params("default", {"trim_interval": 1000}))
        backend.append([new(), new()])
        backend._next_trim = 0
        backend._trimming.acquire()
        backend._process -= 1
        backend.maintain(self.keep_one)
        self.trimmed()
        assert Event.objects.count() == 1

    def test_a_trim_that_fails_is_tried_again(
        self, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        """It is logged, and the next interval tries again."""
        backend = DatabaseBackend(Params("default", {"trim_interval": 1000}))
        backend.append([new(), new()])
        with monkeypatch.context() as patch:
            patch.setattr(DatabaseBackend, "trim", lambda *args: (_ for _ in ()).throw(OperationalError("locked")))
            backend._next_trim = 0
            backend.maintain(self.keep_one)
            self.trimmed()
        assert "trimming failed" in caplog.text
        assert backend._trimming.acquire(blocking=False)


def test_old_keys_go_with_a_trim(backend: DatabaseBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys are kept for five minutes and no longer."""
    backend.append([new(key="k")])
    backend.trim(lambda name: Retention())
    assert IdempotencyKey.objects.count() == 1
    later = __import__("time").time() + 301
    monkeypatch.setattr("time.time", lambda: later)
    backend.trim(lambda name: Retention())
    assert IdempotencyKey.objects.count() == 0


@pytest.mark.parametrize(
    "options, message",
    [
        ({"pol_interval": 1}, r"'pol_interval'.*knows database, listen_dsn, poll_interval, timeout, trim_interval"),
        ({"poll_interval": 0}, r"\['poll_interval'\] is 0"),
        ({"timeout": -1}, r"\['timeout'\] is -1"),
        ({"trim_interval": "often"}, r"\['trim_interval'\] is 'often'"),
        ({"trim_interval": True}, r"\['trim_interval'\] is True"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, object], message: str) -> None:
    """An unknown or impossible option says what is wrong."""
    with pytest.raises(InvalidEventBackend, match=message):
        DatabaseBackend(Params("default", options))


class TestCheck:
    def test_a_database_that_is_not_configured(self) -> None:
        """E003 names the aliases there are."""
        (message,) = DatabaseBackend(Params("default", {"database": "nowhere"})).check()
        assert message.id == "events.E003"
        assert "'default'" in str(message.hint)

    def test_wal_is_fine(self, backend: DatabaseBackend) -> None:
        """A database in WAL mode has nothing to be said about."""
        assert backend.check(["default"]) == []

    def test_it_does_not_connect_unasked(self, backend: DatabaseBackend) -> None:
        """Without leave to connect nothing is said."""
        assert backend.check() == []

    def test_another_journal_mode(self, backend: DatabaseBackend, tmp_path) -> None:
        """W001 says what it costs and what to set."""
        wrapper = connections.create_connection("default")
        wrapper.settings_dict = {**wrapper.settings_dict, "NAME": tmp_path / "plain.sqlite3", "OPTIONS": {}}
        ours = connections["default"]
        connections["default"] = wrapper
        try:
            (message,) = backend.check(["default"])
        finally:
            wrapper.close()
            connections["default"] = ours
        assert message.id == "events.W001"
        assert "journal_mode=WAL" in str(message.hint)

"""Connections that Django does not look after: deadlines, renewal, readers."""

from __future__ import annotations

import os
import select
import threading
import time
from concurrent.futures import CancelledError, Future
from contextlib import contextmanager
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest
from django.db import IntegrityError, OperationalError, connections, transaction

from events.backends import connections as module
from events.backends.connections import (
    Deadline,
    Forks,
    Readers,
    bounded,
    is_conflict,
    new_connection,
    own_connection,
    renewed,
)
from tests.conftest import let_go
from tests.waiting import GUARD

from .contract import in_forked_child

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from django.db.backends.base.base import BaseDatabaseWrapper


@pytest.fixture(params=["postgresql", "mariadb"])
def engine(request: pytest.FixtureRequest) -> str:
    return str(request.getfixturevalue(request.param))


@pytest.fixture
def connection(engine: str) -> Iterator[BaseDatabaseWrapper]:
    yield connections[engine]
    let_go(engine)


def ask(connection: BaseDatabaseWrapper, sql: str) -> object:
    with connection.cursor() as cursor:
        cursor.execute(sql)
        return cursor.fetchone()[0]


def sleep(connection: BaseDatabaseWrapper) -> str:
    return "SELECT pg_sleep(60)" if connection.vendor == "postgresql" else "SELECT sleep(60)"


def identity(connection: BaseDatabaseWrapper) -> object:
    """The server's number for the connection."""
    return ask(connection, "SELECT pg_backend_pid()" if connection.vendor == "postgresql" else "SELECT connection_id()")


def kill(connection: BaseDatabaseWrapper, number: object) -> None:
    """Let the server close another connection, and wait until that is so."""
    sql = f"SELECT pg_terminate_backend({number}, 5000)" if connection.vendor == "postgresql" else f"KILL {number}"
    with connection.cursor() as cursor:
        cursor.execute(sql)


class TestDeadline:
    def test_what_takes_too_long_is_broken_off(self, connection: BaseDatabaseWrapper) -> None:
        """The driver raises, the deadline says why, and the next call has a connection again."""
        with pytest.raises(OperationalError):
            with bounded(connection, 0.3) as deadline:
                ask(connection, sleep(connection))
        assert deadline.has_passed
        assert connection.connection is None
        with bounded(connection, GUARD) as deadline:
            assert ask(connection, "SELECT 1") == 1
        assert not deadline.has_passed

    def test_no_limit(self, connection: BaseDatabaseWrapper) -> None:
        """None waits as long as it takes."""
        with bounded(connection, None):
            assert ask(connection, "SELECT 1") == 1
        assert not module._watchdog.watched

    def test_the_watchdog_wakes_up_again(self, connection: BaseDatabaseWrapper) -> None:
        """After a rest it watches the next deadline as it did the first."""
        for _ in range(2):
            with pytest.raises(OperationalError), bounded(connection, 0.1):
                ask(connection, sleep(connection))
            end = time.monotonic() + GUARD
            while module._watchdog._busy.is_set() and time.monotonic() < end:
                time.sleep(0.01)

    def test_a_closed_connection_has_no_deadline(self, postgresql: str) -> None:
        """There is no socket to watch, neither of one that was closed below Django nor of one never opened."""
        connection = connections[postgresql]
        ask(connection, "SELECT 1")
        connection.connection.close()
        with Deadline(connection, 5):
            assert not module._watchdog.watched
        connection.close()
        with Deadline(connection, 5):
            assert not module._watchdog.watched

    def test_a_child_process_has_a_watchdog_of_its_own(self, connection: BaseDatabaseWrapper) -> None:
        """A fork takes no thread along: the first deadline in the child starts one."""
        with bounded(connection, GUARD):
            ask(connection, "SELECT 1")
        let_go(connection.alias)
        child = os.fork()
        if child == 0:
            try:
                with bounded(connection, 0.2):
                    ask(connection, sleep(connection))
            except OperationalError:
                os._exit(0)
            os._exit(1)
        assert os.waitpid(child, 0)[1] == 0


def wait_for_input(connection: BaseDatabaseWrapper) -> None:
    """Until the server has sent something on a connection that lies idle."""
    descriptor = module._descriptor(connection)
    assert descriptor is not None
    end = time.monotonic() + GUARD
    while not module._has_input(descriptor) and time.monotonic() < end:
        time.sleep(0.01)


class TestRenewal:
    @pytest.mark.parametrize("has_poll", [True, False])
    def test_a_connection_that_died_in_its_sleep_is_renewed(
        self, connection: BaseDatabaseWrapper, has_poll: bool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A server that was started again has closed it: that is found before anything is sent."""
        if not has_poll:
            monkeypatch.delattr(select, "poll")
        before = identity(connection)
        other = new_connection(connection.alias, GUARD)
        kill(other, before)
        other.close()
        wait_for_input(connection)
        with renewed(connection, GUARD):
            assert identity(connection) != before

    def test_a_notice_is_no_end(self, postgresql: str) -> None:
        """A connection with something to read that lives goes on, with all that was set on it."""
        connection = connections[postgresql]
        with connection.cursor() as cursor:
            cursor.execute("LISTEN something; SET application_name = 'mine'")
        other = new_connection(postgresql, GUARD)
        with other.cursor() as cursor:
            cursor.execute("NOTIFY something")
        other.close()
        wait_for_input(connection)
        with renewed(connection, GUARD):
            assert ask(connection, "SHOW application_name") == "mine"

    def test_an_error_that_leaves_the_connection_usable_leaves_it_open(self, connection: BaseDatabaseWrapper) -> None:
        """A mistake in a query is no reason to connect anew."""
        before = identity(connection)
        with pytest.raises(Exception, match="nowhere"), renewed(connection, GUARD):
            ask(connection, "SELECT * FROM nowhere")
        assert identity(connection) == before


def test_what_is_a_conflict() -> None:
    """Only what the server rolled back because of others."""
    deadlock = OperationalError("deadlock")
    assert not is_conflict(deadlock)
    deadlock.__cause__ = Exception(1213, "Deadlock found")
    assert is_conflict(deadlock)
    deadlock.__cause__ = Exception()
    assert not is_conflict(deadlock)
    duplicate = IntegrityError("duplicate")
    duplicate.__cause__ = Exception(1213)
    assert not is_conflict(duplicate)


def test_a_connection_of_our_own_gives_up_connecting(postgresql: str) -> None:
    """After the backend's `timeout`, unless the site says when; it is none of a pool's. SQLite has no such option."""
    assert new_connection(postgresql, 2.4).settings_dict["OPTIONS"]["connect_timeout"] == 2
    assert new_connection(postgresql, 0.1).settings_dict["OPTIONS"]["connect_timeout"] == 1
    assert "connect_timeout" not in new_connection(postgresql, None).settings_dict["OPTIONS"]
    asked = {"OPTIONS": {"connect_timeout": 7, "pool": True}, "PORT": 1}
    connection = new_connection(postgresql, 2, **asked)
    assert connection.settings_dict["OPTIONS"] == {"connect_timeout": 7}
    assert connection.settings_dict["PORT"] == 1
    assert connections[postgresql].settings_dict["PORT"] != 1
    assert "connect_timeout" not in new_connection("default", 2).settings_dict["OPTIONS"]


class TestReaders:
    def threads(self) -> list[threading.Thread]:
        return [thread for thread in threading.enumerate() if thread.name == "events-reader"]

    def test_they_share_the_work_and_go(self, engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
        """At most four, each with a connection that it keeps while there is something to do; then they end."""
        monkeypatch.setattr(module, "READER_IDLE", 0.1)
        readers = Readers(lambda: engine, 5)
        together = threading.Barrier(4)

        def work() -> object:
            together.wait(GUARD)
            return identity(connections[engine])

        used = {future.result(GUARD) for future in [readers.submit(work) for _ in range(8)]}
        assert len(used) == 4
        for thread in self.threads():
            thread.join(GUARD)
        assert not self.threads()
        # And start again.
        assert readers.submit(lambda: 5).result(GUARD) == 5

    def test_an_error_is_the_askers(self, engine: str) -> None:
        """Whoever asked gets it; the thread goes on. What nobody wants any more is not done."""
        readers = Readers(lambda: engine, 5)
        go_on = threading.Event()
        first = readers.submit(go_on.wait, GUARD)
        with pytest.raises(ZeroDivisionError):
            readers.submit(lambda: 1 / 0).result(GUARD)
        blocked = [readers.submit(go_on.wait, GUARD) for _ in range(3)]
        unwanted = readers.submit(pytest.fail, "nobody wants this")
        assert unwanted.cancel()
        go_on.set()
        assert all(future.result(GUARD) for future in [first, *blocked])
        with pytest.raises(CancelledError):
            unwanted.result(GUARD)
        assert readers.submit(lambda: "last").result(GUARD) == "last"

    def test_a_job_that_comes_at_the_last_moment_is_done(self, engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
        """Between a thread's decision to end and its end."""
        readers = Readers(lambda: engine, 5)
        monkeypatch.setattr(module, "READER_IDLE", 0.05)
        before = set(self.threads())
        assert readers.submit(lambda: 1).result(GUARD) == 1
        (thread,) = set(self.threads()) - before
        with readers._lock:
            # The thread gives up waiting, and cannot go on without the lock.
            time.sleep(0.2)
            future: Future[int] = Future()
            readers._jobs.put((future, lambda: 2, ()))
            readers._open_jobs += 1
        assert future.result(GUARD) == 2
        thread.join(GUARD)

    def test_a_child_process_has_readers_of_its_own(self, engine: str) -> None:
        """A fork takes no thread along."""
        readers = Readers(lambda: engine, 5)
        assert readers.submit(lambda: 1).result(GUARD) == 1
        child = os.fork()
        if child == 0:
            os._exit(0 if readers.submit(lambda: 1).result(GUARD) == 1 else 1)
        assert os.waitpid(child, 0)[1] == 0
        # The same where it can be measured.
        readers._process = child
        assert readers.submit(lambda: 2).result(GUARD) == 2
        assert readers._process == os.getpid()


@pytest.fixture
def forks(monkeypatch: pytest.MonkeyPatch) -> Forks:
    """Without being told of the forks of this process."""
    monkeypatch.setattr(os, "register_at_fork", lambda **kwargs: None)
    return Forks()


@contextmanager
def writing(forks: Forks) -> Iterator[tuple[threading.Event, threading.Thread]]:
    """A thread that writes until it is told to give way, and then until the block ends."""
    writes, gives_way, ends = threading.Event(), threading.Event(), threading.Event()

    def write() -> None:
        with forks.held_off():
            writes.set()
            gives_way.wait(GUARD)
            forks.give_way()
            ends.wait(GUARD)

    thread = threading.Thread(target=write)
    thread.start()
    assert writes.wait(GUARD)
    try:
        yield gives_way, thread
    finally:
        gives_way.set()
        ends.set()
        thread.join(GUARD)
        assert not thread.is_alive()


class TestForks:
    def test_a_fork_waits_until_who_writes_gives_way(self, forks: Forks, monkeypatch: pytest.MonkeyPatch) -> None:
        """That one goes on after it, and who wants to begin meanwhile waits too."""
        monkeypatch.setattr(module, "FORK_PATIENCE", GUARD)
        happened: list[str] = []
        is_about_to, may_end = threading.Event(), threading.Event()

        def fork() -> None:
            is_about_to.set()
            forks._before()
            happened.append("fork")
            assert may_end.wait(GUARD)
            happened.append("end")
            forks._after()

        def begin() -> None:
            with forks.held_off():
                happened.append("begin")

        with writing(forks) as (gives_way, thread):
            forking = threading.Thread(target=fork)
            forking.start()
            assert is_about_to.wait(GUARD)
            while not forks._changed._waiters:  # type: ignore[attr-defined]
                assert not happened
            gives_way.set()
            beginning = threading.Thread(target=begin)
            beginning.start()
            while len(forks._changed._waiters) < 2:  # type: ignore[attr-defined]
                assert happened in ([], ["fork"])
            assert thread.ident not in forks._busy
            may_end.set()
            forking.join(GUARD)
            beginning.join(GUARD)
        assert happened == ["fork", "end", "begin"]
        assert (forks._busy, forks._forking) == (set(), set())

    def test_a_fork_does_not_wait_for_ever(
        self, forks: Forks, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Who writes may itself wait, for a lock that the thread holds which forks. It is said."""
        monkeypatch.setattr(module, "FORK_PATIENCE", 0.01)
        with writing(forks):
            forks._before()
            assert "a fork did not wait any longer" in caplog.text
            forks._after()

    def test_who_writes_may_fork_itself(
        self, forks: Forks, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        """It would wait for itself."""
        monkeypatch.setattr(module, "FORK_PATIENCE", 0.01)
        with forks.held_off():
            forks._before()
            forks._after()
            # Nobody forks.
            forks.give_way()
            assert forks._busy == {threading.get_ident()}
        assert caplog.text == ""

    def test_ctrl_c_while_a_fork_waits(self, forks: Forks, monkeypatch: pytest.MonkeyPatch) -> None:
        """Python forks in any case: it waits on, and what it was is said afterwards, as Python says such things."""
        monkeypatch.setattr(module, "FORK_PATIENCE", GUARD)
        wait_for = forks._changed.wait_for
        waits: list[float | None] = []

        def interrupted(condition: Callable[[], bool], timeout: float | None = None) -> bool:
            if not waits:
                waits.append(timeout)
                raise KeyboardInterrupt
            gives_way.set()
            return wait_for(condition, timeout)

        with writing(forks) as (gives_way, thread):
            monkeypatch.setattr(forks._changed, "wait_for", interrupted)
            with pytest.raises(KeyboardInterrupt):
                forks._before()
            monkeypatch.undo()
            assert thread.ident not in forks._busy
            forks._after()
        assert forks._forking == set()

    def test_ctrl_c_before_a_fork_can_wait(self, forks: Forks, monkeypatch: pytest.MonkeyPatch) -> None:
        """Python forks all the same, and afterwards whoever was held off goes on."""

        class Interrupted(threading.Condition):
            def __enter__(self) -> bool:
                raise KeyboardInterrupt

        monkeypatch.setattr(forks, "_changed", Interrupted())
        with pytest.raises(KeyboardInterrupt):
            forks._before()
        monkeypatch.undo()
        forks._after()
        with forks.held_off():
            assert forks._busy == {threading.get_ident()}

    async def test_a_fork_on_a_loop_waits_only_a_moment(self, forks: Forks, caplog: pytest.LogCaptureFixture) -> None:
        """A policy of the site's may wait for the loop: neither would go on."""
        began = time.monotonic()
        with writing(forks):
            forks._before()
            forks._after()
        assert "a fork did not wait any longer" in caplog.text
        assert time.monotonic() - began < module.FORK_PATIENCE

    @pytest.mark.django_db(transaction=True)
    def test_a_fork_in_a_transaction_waits_only_a_moment(self, forks: Forks, caplog: pytest.LogCaptureFixture) -> None:
        """A tick may wait for the lock that the thread has which forks."""
        began = time.monotonic()
        with writing(forks), transaction.atomic():
            forks._before()
            forks._after()
        assert "a fork did not wait any longer" in caplog.text
        assert time.monotonic() - began < module.FORK_PATIENCE

    def test_what_a_server_does_holds_no_fork_off(self, forks: Forks, monkeypatch: pytest.MonkeyPatch) -> None:
        """It may take long, and is nothing to a child; what SQLite does is."""
        monkeypatch.setattr(module, "forks", forks)
        with module.using_databases():
            assert forks._busy == {threading.get_ident()}
        server = {"default": {"ENGINE": "django.db.backends.postgresql"}}
        monkeypatch.setattr(module, "connections", SimpleNamespace(settings=server))
        with module.using_databases():
            assert not forks._busy

    def test_a_database_that_is_not_to_be_had_here_is_none_of_sqlites(
        self, forks: Forks, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Its driver may be on other machines only, and nothing of the app asks for it."""
        monkeypatch.setattr(module, "forks", forks)
        settings = {"default": {"ENGINE": "django.db.backends.dummy"}, "far": {"ENGINE": "no.such.engine"}}
        monkeypatch.setattr(module, "connections", SimpleNamespace(settings=settings))
        with module.using_databases():
            assert not forks._busy

    def test_the_outer_one_of_two_holds_forks_off_to_its_end(self, forks: Forks) -> None:
        """A tail that numbers what a publisher has left, for one."""
        with forks.held_off():
            with forks.held_off():
                pass
            assert forks._busy == {threading.get_ident()}
        assert not forks._busy

    def test_who_holds_nothing_off_need_not_give_way(self, forks: Forks) -> None:
        """As a trim in the foreground, which may have a transaction of the site's around it."""
        forks._before()
        forks.give_way()
        forks._after()

    def test_a_child_process_has_nobody_who_writes(self) -> None:
        """A fork takes no thread along."""

        def write() -> None:
            with module.forks.held_off():
                assert module.forks._busy == {threading.get_ident()}

        with writing(module.forks) as (gives_way, _):
            gives_way.set()
            in_forked_child(write)


def test_a_threads_own_connection_is_what_django_gives_it(engine: str) -> None:
    """In that thread, and in no other."""
    found: list[BaseDatabaseWrapper] = []

    def take() -> None:
        own = own_connection(engine, 3)
        found.extend([own, connections[engine]])

    thread = threading.Thread(target=take)
    thread.start()
    thread.join(GUARD)
    assert found[0] is found[1] is not connections[engine]

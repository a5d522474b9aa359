"""How the tail on PostgreSQL gets over what happens to its connection and its notifications."""

from __future__ import annotations

import threading
from contextlib import aclosing
from typing import TYPE_CHECKING

import pytest

from events.backends import tails
from events.backends.base import Params
from events.backends.connections import new_connection
from events.backends.database import DatabaseBackend
from events.backends.tails import ListeningTail
from tests.conftest import let_go
from tests.waiting import GUARD, until

from .contract import collect, new, next_batch, off_loop, positions

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def backend(postgresql: str) -> Iterator[DatabaseBackend]:
    yield DatabaseBackend(Params("default", {"database": postgresql, "trim_interval": None, "poll_interval": 0.02}))
    for thread in threading.enumerate():
        if thread.name in ("events-tail", "events-reader"):
            thread.join(GUARD)
    let_go(postgresql)


def execute(alias: str, sql: str) -> None:
    connection = new_connection(alias, GUARD)
    with connection.cursor() as cursor:
        cursor.execute(sql)
    connection.close()


#: Ends all connections of the server but the one that says so.
CUT_ALL = """
SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity
WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()
"""


async def test_an_old_driver_polls(backend: DatabaseBackend, monkeypatch: pytest.MonkeyPatch, caplog) -> None:
    """psycopg2 (here: a psycopg 3 that does not show itself) has no notifications for us; events come all the same."""
    monkeypatch.setattr(tails, "hasattr", lambda *args: False, raising=False)
    async with aclosing(backend.tail()) as batches:
        await next_batch(batches)
        await backend.aappend([new()])
        assert positions(await collect(batches, 1)) == [1]
    assert "no LISTEN/NOTIFY, polling every 0.02 s instead" in caplog.text
    assert "psycopg 3 is not installed" in caplog.text


async def test_a_server_that_does_not_listen(backend: DatabaseBackend, monkeypatch: pytest.MonkeyPatch, caplog) -> None:
    """
    A standby refuses LISTEN: the tail polls, says so once, and says when it listens again.

    Here the server refuses a statement that is none.
    """
    with monkeypatch.context() as patch:
        patch.setattr(tails, "NOTIFICATIONS", "no name")
        async with aclosing(backend.tail()) as batches:
            await next_batch(batches)
            await backend.aappend([new()])
            assert positions(await collect(batches, 1)) == [1]
            assert 'syntax error at or near "name"' in caplog.text
            (tail,) = backend._tails
            # The same again with the next connection, and nothing more is said.
            looks = tail.begin
            begun = threading.Event()

            def begin(connection) -> None:
                looks(connection)
                begun.set()

            patch.setattr(tail, "begin", begin)
            await off_loop(execute, backend.database, CUT_ALL)
            assert await off_loop(begun.wait, GUARD)
            patch.undo()
            await off_loop(execute, backend.database, CUT_ALL)
            await until(lambda: "notifications arrive again" in caplog.text)
            await backend.aappend([new()])
            assert positions(await collect(batches, 1)) == [2]
    assert caplog.text.count("no LISTEN/NOTIFY") == 1


async def test_a_connection_that_breaks_while_it_begins_to_listen(
    backend: DatabaseBackend, monkeypatch: pytest.MonkeyPatch, caplog
) -> None:
    """That is no refusal: it tries again."""
    names = iter(["events_log; SELECT pg_terminate_backend(pg_backend_pid())"])
    listen = ListeningTail._listen

    def once(self, connection):
        with monkeypatch.context() as patch:
            patch.setattr(tails, "NOTIFICATIONS", next(names, tails.NOTIFICATIONS))
            return listen(self, connection)

    monkeypatch.setattr(ListeningTail, "_listen", once)
    async with aclosing(backend.tail()) as batches:
        await next_batch(batches)
        await backend.aappend([new()])
        assert positions(await collect(batches, 1)) == [1]
    assert caplog.text.count("the log cannot be read, trying again") == 1
    assert "no LISTEN/NOTIFY" not in caplog.text


async def test_much_that_was_missed_is_read_first(backend: DatabaseBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    """More events than fit into one look, published while the tail had no connection, come without another event."""
    go_on = threading.Event()
    async with aclosing(backend.tail()) as batches:
        await next_batch(batches)
        (tail,) = backend._tails
        connect = tail.connect

        def later():
            go_on.wait(GUARD)
            return connect()

        monkeypatch.setattr(tail, "connect", later)
        await off_loop(execute, backend.database, CUT_ALL)
        await backend.aappend([new() for _ in range(1203)])
        go_on.set()
        assert positions(await collect(batches, 1203)) == list(range(1, 1204))


async def test_a_lost_notification_costs_a_second(backend: DatabaseBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    """The log's row is looked at now and then all the same."""
    monkeypatch.setattr(tails, "ORPHAN_LOOK", 0.05)
    async with aclosing(backend.tail()) as batches:
        await next_batch(batches)
        monkeypatch.setattr(ListeningTail, "_notified", lambda self, connection: False)
        await backend.aappend([new()])
        assert positions(await collect(batches, 1)) == [1]

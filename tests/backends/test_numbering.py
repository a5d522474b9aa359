"""How PostgreSQL's publishers number together, with every interleaving forced."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest
from django.db import OperationalError, connections, transaction

from events.backends import database
from events.backends.base import Params
from events.backends.connections import new_connection
from events.backends.database import DatabaseBackend
from events.exceptions import BackendUnavailable
from events.models import Event, Log
from tests.conftest import let_go
from tests.waiting import GUARD

from .contract import in_threads, new, positions

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def backend(postgresql: str) -> Iterator[DatabaseBackend]:
    yield DatabaseBackend(Params("default", {"database": postgresql, "trim_interval": None}))
    let_go(postgresql)


@contextmanager
def somebody_numbering(alias: str) -> Iterator[Any]:
    """Another connection that has the lock, as long as the block lasts; it gives a cursor of that connection."""
    other = new_connection(alias, GUARD)
    try:
        with other.cursor() as cursor:
            cursor.execute("BEGIN")
            cursor.execute(f"SELECT pg_advisory_xact_lock({database._LOCK})")
            yield cursor
            cursor.execute("COMMIT")
    finally:
        other.close()


def publish_in_thread(backend: DatabaseBackend, *events: Any) -> tuple[threading.Thread, list[Any]]:
    found: list[Any] = []

    def publish() -> None:
        try:
            found.extend(backend.append(events))
        finally:
            connections[backend.database].close()

    thread = threading.Thread(target=publish)
    thread.start()
    return thread, found


def wait_for_rows(cursor: Any, count: int) -> None:
    """Until so many rows without a number are committed."""
    for _ in range(int(GUARD / 0.02)):
        cursor.execute(f"SELECT count(*) FROM {Event._meta.db_table} WHERE position IS NULL")
        if cursor.fetchone()[0] == count:
            return
        cursor.execute("SELECT pg_sleep(0.02)")
    raise TimeoutError


@pytest.mark.parametrize("server_side_binding", [False, True])
def test_those_who_find_another_numbering_are_numbered_together(
    backend: DatabaseBackend, server_side_binding: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They commit without waiting; when the other one is done, one of them numbers all. With either kind of cursor."""
    options = {"server_side_binding": server_side_binding}
    settings = {**connections.settings[backend.database], "OPTIONS": options}
    monkeypatch.setitem(connections.settings, backend.database, settings)
    backend.append([new(data="first")])
    with somebody_numbering(backend.database) as cursor:
        publishers = [publish_in_thread(backend, new(data=f"{n} a"), new(data=f"{n} b")) for n in range(5)]
        wait_for_rows(cursor, 10)
        assert not any(found for _, found in publishers)
    for thread, _ in publishers:
        thread.join(GUARD)
    events = backend.read(["news"], 0, 100).events
    assert positions(events) == list(range(1, 12))
    by_id = {f"{backend.head().epoch}-{event.position}": event.data for event in events}
    for number, (_, found) in enumerate(publishers):
        assert [by_id[result.id] for result in found] == [f"{number} a", f"{number} b"]


def test_the_first_of_all_may_find_another_numbering(backend: DatabaseBackend) -> None:
    """A log without its row begins its life when that one is done."""
    with somebody_numbering(backend.database) as cursor:
        thread, found = publish_in_thread(backend, new())
        wait_for_rows(cursor, 1)
    thread.join(GUARD)
    assert found[0].id == str(backend.head())
    assert backend.head().position == 1


def test_the_first_of_all(backend: DatabaseBackend) -> None:
    """Who has the lock, and no row to number with, begins the log's life."""
    assert not Log.objects.using(backend.database).exists()
    assert backend.append([new()])[0].id == str(backend.head())


def test_what_is_gone_before_it_is_numbered_has_no_cursor(backend: DatabaseBackend) -> None:
    """Nobody waits for ever for the number of a row that was deleted behind the log's back."""
    with somebody_numbering(backend.database) as cursor:
        thread, found = publish_in_thread(backend, new())
        wait_for_rows(cursor, 1)
        cursor.execute("SAVEPOINT before")
        other = new_connection(backend.database, GUARD)
        with other.cursor() as deleting:
            deleting.execute(f"DELETE FROM {Event._meta.db_table}")
        other.close()
    thread.join(GUARD)
    assert [result.id for result in found] == [None]


def test_a_stricter_isolation_level(backend: DatabaseBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the server refuses what others changed meanwhile, it is tried again."""
    from psycopg import IsolationLevel

    options = {"isolation_level": IsolationLevel.SERIALIZABLE}
    settings = {**connections.settings[backend.database], "OPTIONS": options}
    monkeypatch.setitem(connections.settings, backend.database, settings)

    def publish(number: int) -> None:
        try:
            for index in range(20):
                with transaction.atomic(using=backend.database):
                    backend.append([new(data=f"{number} {index}")])
                backend.append([new(data=f"{number} {index}")])
        finally:
            connections[backend.database].close()

    in_threads(*[lambda number=number: publish(number) for number in range(4)])
    assert positions(backend.read(["news"], 0, 1000).events) == list(range(1, 161))


def test_a_conflict_that_does_not_end_is_said(backend: DatabaseBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    """After so many tries the publisher is told, and nothing is written."""
    tries = []

    def conflict(*args: Any) -> Any:
        tries.append(args)
        error = OperationalError("deadlock detected")
        error.__cause__ = Exception(1213, "deadlock detected")
        raise error

    monkeypatch.setattr(database, "_rows", conflict)
    with pytest.raises(BackendUnavailable, match=r"nothing was published.*deadlock"):
        backend.append([new()])
    assert len(tries) == database.TRIES

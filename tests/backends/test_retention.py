"""Trimming beside publishing: neither waits for the other, on a log of any size."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest
from django.db import connections

from events.backends.base import Params, Retention
from events.backends.database import DatabaseBackend
from events.models import Event, Log
from tests.conftest import let_go
from tests.waiting import GUARD

from .contract import new, positions

if TYPE_CHECKING:
    from collections.abc import Iterator

MILLION = 1_000_000
KEPT = 1000


def keep(name: str) -> Retention:
    return Retention(events=KEPT)


@pytest.fixture(params=["postgresql", "mariadb"])
def alias(request: pytest.FixtureRequest) -> str:
    return str(request.getfixturevalue(request.param))


@pytest.fixture
def backend(alias: str) -> Iterator[DatabaseBackend]:
    yield DatabaseBackend(Params("default", {"database": alias, "trim_interval": None}))
    let_go(alias)


@contextmanager
def in_thread(alias: str, function, *args) -> Iterator[list[Any]]:
    """Run it beside the block, and give what it returns when the block is left."""
    found: list[Any] = []

    def run() -> None:
        try:
            found.append(function(*args))
        finally:
            connections[alias].close()

    thread = threading.Thread(target=run)
    thread.start()
    yield found
    thread.join(250)
    assert not thread.is_alive()


@contextmanager
def held_in_its_transaction(backend: DatabaseBackend, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A trim on another thread that has removed its first rows and not committed that, as long as the block lasts."""
    removed, go_on = threading.Event(), threading.Event()
    trimmer = DatabaseBackend(Params("default", backend.options))
    delete = Event.rows.get_queryset().__class__.delete

    def hold(query_set):
        count = delete(query_set)
        if threading.current_thread() is not threading.main_thread() and not removed.is_set():
            removed.set()
            go_on.wait(GUARD)
        return count

    monkeypatch.setattr(type(Event.rows.get_queryset()), "delete", hold)
    with in_thread(backend.database, trimmer.trim, keep):
        assert removed.wait(GUARD)
        try:
            yield
        finally:
            go_on.set()


def test_a_publisher_does_not_wait_for_a_trim(backend: DatabaseBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    """It writes, and is read, while the trim's transaction is open: to the channel that is trimmed, and to another."""
    backend.append([new() for _ in range(2 * KEPT)])
    with held_in_its_transaction(backend, monkeypatch):
        backend.append([new(data="beside"), new("other", "beside")])
        found = backend.read(["news", "other"], 2 * KEPT, 10).events
        assert [(event.channel, event.data) for event in found] == [("news", "beside"), ("other", "beside")]
    found = backend.read(["news"], -1, 3 * KEPT).events
    assert positions(found) == list(range(KEPT + 1, 2 * KEPT + 2))


def test_trims_at_once_remove_what_one_would(backend: DatabaseBackend) -> None:
    """Several processes that trim while others publish: no error, nothing too much, no floor that goes down."""
    channels = [f"channel-{number}" for number in range(4)]
    backend.append([new(channel) for _ in range(2 * KEPT) for channel in channels])

    def publish() -> None:
        for _ in range(50):
            backend.append([new(channel) for channel in channels])

    with (
        in_thread(backend.database, publish),
        in_thread(backend.database, backend.trim, keep) as one,
        in_thread(backend.database, backend.trim, keep) as two,
    ):
        pass
    (first,), (second,) = one, two
    left = backend.trim(keep)
    assert first + second + left == len(channels) * (KEPT + 50)
    found = backend.read(channels, -1, 10 * KEPT)
    assert len(found.events) == len(channels) * KEPT
    for channel in channels:
        oldest = min(event.position for event in found.events if event.channel == channel)
        assert oldest - len(channels) <= found.floors[channel] < oldest


# A million


def fill(backend: DatabaseBackend, count: int) -> None:
    """Write so many events with SQL: publishing them is not what is tested."""
    connection = connections[backend.database]
    backend.head()
    columns = "position, channel, type, data, is_json, created_at"
    row = "n, 'news', 'message', 'x', {false}, 1000000000"
    numbers = {
        "sqlite": f"WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM c WHERE n < {count}) "
        f"SELECT {row} FROM c",
        "postgresql": f"SELECT {row} FROM generate_series(1, {count}) AS n",
        "mysql": f"SELECT {row.replace('n,', 'seq,', 1)} FROM seq_1_to_{count}",
    }[connection.vendor].format(false="FALSE" if connection.vendor == "postgresql" else "0")
    with connection.cursor() as cursor:
        cursor.execute(f"INSERT INTO {Event._meta.db_table} ({columns}) {numbers}")
        cursor.execute(f"UPDATE {Log._meta.db_table} SET head = {count}")


#: How many events, and where. The site's own database is only made where a test asks for it by this mark.
SIZES = [
    pytest.param(100_000, "transactional_db", marks=pytest.mark.django_db(transaction=True)),
    pytest.param(MILLION, "transactional_db", marks=[pytest.mark.django_db(transaction=True), pytest.mark.nightly]),
    pytest.param(MILLION, "postgresql", marks=pytest.mark.nightly),
    pytest.param(MILLION, "mariadb", marks=pytest.mark.nightly),
]


@pytest.fixture
def large(request: pytest.FixtureRequest, size: int, where: str) -> Iterator[DatabaseBackend]:
    """A log of so many events."""
    alias = request.getfixturevalue(where) or "default"
    backend = DatabaseBackend(Params("default", {"database": alias, "trim_interval": None}))
    fill(backend, size)
    yield backend
    let_go(alias)


@pytest.mark.timeout(280)
@pytest.mark.parametrize("size, where", SIZES)
def test_a_million_events(large: DatabaseBackend, size: int) -> None:
    """All but the kept ones go while others publish: those are all there, and the floor says what went."""
    trimmed = threading.Event()
    published: list[str | None] = []
    during = 0

    def trim() -> int:
        try:
            return large.trim(keep)
        finally:
            trimmed.set()

    with in_thread(large.database, trim) as removed:
        while not trimmed.is_set() or not published:
            published += [event.id for event in large.append([new(data="beside")])]
            during += not trimmed.is_set()
        trimmed.wait(GUARD)
    # Publishing went on all the time, and did not wait for the end.
    assert during > 10
    large.trim(keep)
    found = large.read(["news"], -1, size)
    assert len(found.events) == KEPT
    head = large.head()
    assert head.position == size + len(published)
    assert found.floors == {"news": head.position - KEPT}
    assert removed

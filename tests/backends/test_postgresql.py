"""The log in PostgreSQL: the contract, and how notifications come, or do not."""

from __future__ import annotations

import asyncio
import threading
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

import pytest
from django.db import connections

from events.backends import tails
from events.backends.base import Params
from events.backends.database import DatabaseBackend
from tests.conftest import let_go, require_engine
from tests.engines import PgBouncer
from tests.waiting import GUARD, until

from .contract import backend_contract, collect, new, next_batch, off_loop, positions
from .elsewhere import Elsewhere, job

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.engines import PostgreSQL

#: Seconds that nobody waits for: what arrives all the same was not polled.
NEVER = 3600.0


def backend_on(alias: str, **options: Any) -> DatabaseBackend:
    return DatabaseBackend(Params("default", {"database": alias, "trim_interval": None, **options}))


def make_postgresql(postgresql: str) -> Iterator[DatabaseBackend]:
    backend = backend_on(postgresql)
    yield backend
    backend.close()


TestContract = backend_contract(make_postgresql)


@pytest.fixture
def backend(postgresql: str) -> Iterator[DatabaseBackend]:
    yield from make_postgresql(postgresql)


@pytest.fixture(scope="module")
def pgbouncer(postgresql_server: PostgreSQL) -> Iterator[PgBouncer]:
    require_engine(PgBouncer, "psycopg")
    with PgBouncer(postgresql_server) as server:
        yield server


@pytest.fixture
def pooled(postgresql: str, pgbouncer: PgBouncer) -> Iterator[str]:
    """The alias of the same database, by way of a pgbouncer in transaction mode."""
    alias = "pooled"
    connections.settings[alias] = {**connections.settings[postgresql], **pgbouncer.settings}
    yield alias
    for thread in threading.enumerate():
        if thread.name in ("events-tail", "events-reader"):
            thread.join(GUARD)
    let_go(alias)
    del connections[alias]
    del connections.settings[alias]


@pytest.fixture
def not_polling(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without looks for events whose publisher died, which are looks for all events."""
    monkeypatch.setattr(tails, "ORPHAN_LOOK", NEVER)


async def publish_elsewhere(backend: DatabaseBackend, name: str, transaction: bool = False) -> None:
    function = "publish_in_transaction" if transaction else "publish"
    with Elsewhere(backend, job(function, name=name, count=1)) as processes:
        await off_loop(processes.results)


@pytest.mark.usefixtures("not_polling")
class TestNotifications:
    @pytest.mark.parametrize("transaction", [False, True])
    async def test_an_event_of_another_process_wakes_the_tail(
        self, backend: DatabaseBackend, transaction: bool
    ) -> None:
        """No look is due for an hour: PostgreSQL says that there is something to read, and says it in time."""
        async with aclosing(backend.tail()) as batches:
            await next_batch(batches)
            await publish_elsewhere(backend, "elsewhere", transaction)
            assert [event.data for event in await collect(batches, 1)] == ["elsewhere 0"]

    async def test_one_of_this_process_does_too(self, backend: DatabaseBackend) -> None:
        """Nobody has to go round by way of a poll."""
        async with aclosing(backend.tail()) as batches:
            await next_batch(batches)
            await backend.aappend([new(data="here")])
            assert [event.data for event in await collect(batches, 1)] == ["here"]

    async def test_a_tail_that_waits_for_a_notification_ends_when_it_is_closed(self, backend: DatabaseBackend) -> None:
        """It does not wait for the server once nobody wants its events."""
        async with aclosing(backend.tail()) as batches:
            await next_batch(batches)
            (tail,) = backend._tails
        await off_loop(tail.join, GUARD)
        assert not tail.is_alive()

    async def test_listening_beside_a_pooler(self, postgresql: str, pooled: str, postgresql_server: PostgreSQL) -> None:
        """With `listen_dsn` the tail goes past the pooler that everything else goes through."""
        backend = backend_on(pooled, listen_dsn=postgresql_server.url)
        async with aclosing(backend.tail()) as batches:
            await next_batch(batches)
            await publish_elsewhere(backend, "elsewhere")
            assert [event.data for event in await collect(batches, 1)] == ["elsewhere 0"]
        backend.close()


class TestWithoutNotifications:
    async def test_behind_a_pooler_it_says_so_once_and_polls(
        self, pooled: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        """pgbouncer in transaction mode swallows notifications: events arrive all the same."""
        monkeypatch.setattr(tails, "PROBE_WAIT", 0.2)
        backend = backend_on(pooled, poll_interval=0.02)
        async with aclosing(backend.tail()) as batches:
            await next_batch(batches)
            await publish_elsewhere(backend, "elsewhere")
            await backend.aappend([new(data="here")])
            assert [event.data for event in await collect(batches, 2)] == ["elsewhere 0", "here"]
        backend.close()
        assert caplog.text.count("no LISTEN/NOTIFY, polling every 0.02 s instead") == 1
        assert "is there a pooler between?" in caplog.text

    async def test_a_wrong_listen_dsn_is_named(self, postgresql: str, caplog: pytest.LogCaptureFixture) -> None:
        """What is no connection string is said to be none, and with which option."""
        backend = backend_on(postgresql, listen_dsn="no connection string")
        tail = backend.tail()
        waits = asyncio.ensure_future(anext(tail))
        await until(lambda: "'listen_dsn'" in caplog.text)
        waits.cancel()
        await asyncio.gather(waits, return_exceptions=True)
        await tail.aclose()
        assert "is no connection string" in caplog.text


@pytest.mark.parametrize("has_statistics", [False, True])
def test_newest_does_not_walk_through_the_log(backend: DatabaseBackend, has_statistics: bool) -> None:
    """However seldom a channel has an event, and whatever the planner knows: an index has all that is looked at."""
    backend.append([new("seldom")])
    for _ in range(10):
        backend.append([new(f"often.{number % 3}", "x" * 200) for number in range(1000)])
    with connections[backend.database].cursor() as cursor:
        if has_statistics:
            cursor.execute("ANALYZE events_event")
        # What the planner knows of is a channel that was busy once, and has been silent since.
        backend.append([new("elsewhere") for _ in range(1000)])

        def explain(execute, sql, params, many, context):
            execute(f"EXPLAIN (ANALYZE, TIMING OFF) {sql}", params, many, context)
            plans.append("\n".join(row[0] for row in context["cursor"].fetchall()))
            return execute(sql, params, many, context)

        plans: list[str] = []
        with connections[backend.database].execute_wrapper(explain):
            assert positions(backend.newest(["seldom"], 50)) == [1]
            assert positions(backend.newest(["seldom", "often.0"], 50)) == list(range(9854, 10002, 3))
        (plan, beside) = plans
        for text in (plan, beside):
            assert "Seq Scan on events_event" not in text
            assert "events_event_channel_position" in text
            # As of a filter over all that is not the channel's.
            assert "Rows Removed" not in text

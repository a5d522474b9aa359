"""The log in MariaDB."""

from __future__ import annotations

import threading

from django.db import connections

from events.backends.base import Params
from events.backends.database import DatabaseBackend
from tests.waiting import GUARD

from .contract import backend_contract, new, positions


def make_mariadb(mariadb: str):
    backend = DatabaseBackend(Params("default", {"database": mariadb, "trim_interval": None}))
    yield backend
    backend.close()


TestContract = backend_contract(make_mariadb)


def test_two_that_begin_the_log_at_once(mariadb: str) -> None:
    """Who finds no row to take a number from, and then one that another publisher has made, takes its own number."""
    backend = DatabaseBackend(Params("default", {"database": mariadb, "trim_interval": None}))
    others: list[threading.Thread] = []

    def publish() -> None:
        backend.append([new(data="other")])
        connections[mariadb].close()

    def let_another_be_first(execute, sql, params, many, context):
        result = execute(sql, params, many, context)
        if sql.startswith("UPDATE events_log") and not others:
            others.append(threading.Thread(target=publish))
            others[0].start()
            others[0].join(GUARD)
        return result

    with connections[mariadb].execute_wrapper(let_another_be_first):
        backend.append([new(data="own")])
    assert [event.data for event in backend.read(["news"], 0, 10).events] == ["other", "own"]


def test_newest_does_not_walk_through_the_log(mariadb: str) -> None:
    """However seldom a channel has an event."""
    backend = DatabaseBackend(Params("default", {"database": mariadb, "trim_interval": None}))
    backend.append([new("seldom")])
    for _ in range(10):
        backend.append([new(f"often.{number % 3}") for number in range(1000)])
    with connections[mariadb].cursor() as cursor:
        cursor.execute("FLUSH STATUS")
        assert positions(backend.newest(["seldom", "often.0"], 50)) == [*range(9854, 10002, 3)]
        cursor.execute("SHOW SESSION STATUS LIKE 'Handler_read%'")
        looks = sum(int(row[1]) for row in cursor.fetchall())
    # Fifty positions, again when they are put in order, and then their rows.
    assert looks < 500

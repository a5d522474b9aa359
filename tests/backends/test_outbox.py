"""An outbox in a database that is not SQLite, and logs in another database than the site's default one."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from django.db import transaction

from events.backends.base import Params
from events.backends.database import DatabaseBackend
from events.backends.redis import RedisBackend
from events.models import Outbox
from events.publishing import append
from tests.conftest import let_go

from .contract import new

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.engines import Redis


@pytest.fixture(params=["postgresql", "mariadb"])
def alias(request: pytest.FixtureRequest) -> Iterator[str]:
    yield str(request.getfixturevalue(request.param))
    let_go(request.param)


def test_any_text_is_relayed_as_it_was_published(alias: str, redis_server: Redis) -> None:
    """Also NUL, which PostgreSQL cannot hold; and nothing stays behind."""
    options = {"url": redis_server.url, "prefix": f"outbox-{alias}", "outbox": True, "database": alias}
    backend = RedisBackend(Params("default", options))
    texts = ["plain", "nul \0 and sub \x1a and both \x1a\0 \x1a0", "é😀\u2028\r\n"]
    try:
        with transaction.atomic(using=alias):
            published = backend.append([new(data=text) for text in texts])
            assert Outbox.objects.using(alias).count() == 3
            assert not any(event.id for event in published)
        assert all(event.id for event in published)
        assert [event.data for event in backend.read(["news"], 0, 10).events] == texts
        assert not Outbox.objects.using(alias).exists()
    finally:
        backend.clear(["news"])
        backend.close()


class TestAnotherDatabase:
    """The site's own transactions are in one database, the log in another."""

    @pytest.fixture
    def log(self, alias: str) -> Iterator[DatabaseBackend]:
        yield DatabaseBackend(Params("default", {"database": alias, "trim_interval": None}))
        let_go("default")

    def data(self, log: DatabaseBackend) -> list[str]:
        return [event.data for event in log.read(["news"], 0, 10).events]

    def test_a_transaction_of_the_sites_is_waited_for(self, log: DatabaseBackend) -> None:
        """Rolled back, it publishes nothing; committed, once, and the cursor is filled in."""  # promise 5
        with transaction.atomic():
            append(log, [new(data="never")])
            transaction.set_rollback(True)
        with transaction.atomic():
            (published,) = append(log, [new(data="once")])
            assert published.id is None
            assert self.data(log) == []
        assert self.data(log) == ["once"]
        assert str(published.id) == str(log.head())

    def test_a_transaction_of_the_logs_own_is_joined(self, log: DatabaseBackend) -> None:
        """The event is a part of that one, whatever the site's default database does."""
        with transaction.atomic(), transaction.atomic(using=log.database):
            append(log, [new(data="never")])
            transaction.set_rollback(True, using=log.database)
        with transaction.atomic(), transaction.atomic(using=log.database):
            append(log, [new(data="once")])
        assert self.data(log) == ["once"]

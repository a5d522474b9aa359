"""What tests of all modules share."""

from __future__ import annotations

import asyncio
import os
import uuid
from contextlib import contextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import pytest
from asgiref.sync import sync_to_async
from django.apps import apps
from django.contrib.auth import get_user_model
from django.core.management import call_command
from django.core.management.color import no_style
from django.core.management.commands import flush
from django.db import connections

from events import draining, limits
from events.channels import _Rows, channel_table
from events.models import Channel
from events.registry import event_backends
from events.sources import _registered
from events.streams import say_once
from events.ticks import ticker

from .engines import EVERY_WRITE, Engine, MariaDB, PostgreSQL, Redis
from .firefox import Firefox
from .hubs import Log, hub_with
from .plugins import require_program, require_that

if TYPE_CHECKING:
    from collections.abc import Iterator


#: Where coverage writes what a process that begins needs to know, to be measured.
MEASURING = "COVERAGE_PROCESS_CONFIG"


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_teardown() -> None:
    """Stop the ticker before any fixture goes: it would write while the test's database is emptied."""
    ticker.stop()


@pytest.fixture(scope="session", autouse=True)
def _measuring() -> Iterator[str | None]:
    """
    Let no process be measured that a test starts: there it takes up to twice the time.

    Nearly all that runs in servers and commands runs in this process, too, in tests of its own. Where that is not so,
    the test asks for `measured`.
    """
    with pytest.MonkeyPatch.context() as patch:
        found = os.environ.get(MEASURING)
        patch.delenv(MEASURING, raising=False)
        yield found


@pytest.fixture
def measured(_measuring: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Has the processes measured that the test starts: they run what nothing else does."""
    if _measuring is not None:
        monkeypatch.setenv(MEASURING, _measuring)


@pytest.fixture(scope="session")
def django_db_modify_db_settings() -> None:
    """Leave the names of the databases alone: each process has a folder of its own (`tests.settings`)."""


@pytest.fixture(scope="session")
def django_db_setup(django_db_setup: None, django_db_blocker: Any) -> Iterator[None]:
    """
    Once a test's database was emptied, content types and permissions are put back as they were.

    Django would compute both anew from all models, which takes longer than many a test.
    """
    from django.contrib.auth.models import Permission
    from django.contrib.contenttypes.models import ContentType

    kept: list[tuple[str, list[Any]]] = []
    with django_db_blocker.unblock():
        # Where no test of the run asks for it, pytest-django makes no database.
        tables = connections["default"].introspection.table_names()
        for model in (ContentType, Permission) if ContentType._meta.db_table in tables else ():
            columns = [field.attname for field in model._meta.concrete_fields]
            places = ", ".join(["%s"] * len(columns))
            insert = f"INSERT INTO {model._meta.db_table} ({', '.join(columns)}) VALUES ({places})"
            kept.append((insert, list(model._default_manager.values_list(*columns))))

    def put_back(verbosity: int, interactive: bool, db: str, **kwargs: object) -> None:
        ContentType.objects.clear_cache()
        with connections[db].cursor() as cursor:
            for insert, rows in kept:
                cursor.executemany(insert, rows)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(flush, "emit_post_migrate_signal", put_back)
        yield


@pytest.fixture(autouse=True)
def _fresh_process():
    """Let each test begin as a new process does: no log, no source, no copy of another test's channels."""
    sources = dict(_registered)
    draining._after_fork()
    limits.open_streams.after_fork()
    limits.counts.clear()
    limits._said_at.clear()
    say_once.cache_clear()
    yield
    _registered.clear()
    _registered.update(sources)
    event_backends.reset()
    channel_table._rows, channel_table._revision = _Rows([]), None
    channel_table._looked_at = channel_table._read_at = float("-inf")


@pytest.fixture
def name() -> str:
    """A channel of the test's own, which everybody may read on the sites of `tests.servers`."""
    return f"public.{uuid.uuid4().hex}"


@pytest.fixture
def make_channel():
    """Makes a channel that everybody may read, unless told otherwise."""

    def make(name: str = "news", **fields) -> Channel:
        return Channel.objects.create(**{"name": name, "access": "public", **fields})

    return make


@pytest.fixture
def make_user():
    """Makes a user with the permissions named, as `events.change_channel`'s last part."""

    def make(username: str = "someone", *permissions: str, **fields):
        from django.contrib.auth.models import Permission

        user = get_user_model().objects.create_user(username, password="secret", **fields)
        user.user_permissions.set(Permission.objects.filter(content_type__app_label="events", codename__in=permissions))
        return user

    return make


@pytest.fixture
def log(transactional_db) -> Log:
    """A log that does what the test says, and channels for it."""
    Channel.objects.bulk_create(
        [
            Channel(name="news", access="public"),
            Channel(name="other", access="public"),
            Channel(name="all", access="public", replay="all"),
            Channel(name="latest", access="public", replay="latest"),
        ]
    )
    channel_table.refresh()
    return Log()


@pytest.fixture
async def hub(log: Log):
    """A hub that follows `log`."""
    async with hub_with(log) as hub:
        yield hub


@pytest.fixture(scope="module")
def running_firefox(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Firefox]:
    """Debian's Firefox, started once for a module."""
    with Firefox(require_program("firefox-esr"), tmp_path_factory.mktemp("firefox")) as firefox:
        yield firefox


@pytest.fixture
def firefox(running_firefox: Firefox) -> Iterator[Firefox]:
    """A Firefox that knows nothing of other tests, and where no page may have a fault."""
    with running_firefox.fresh() as firefox:
        yield firefox


# Engines. One server of each in a run, started when a test first asks for it, and emptied before each test.


def require_engine(kind: type[Engine], driver: str) -> None:
    """Skip the test, or with `CI=true` fail it, where a program of the engine or its Python driver is missing."""
    for program in kind.programs:
        require_program(program)
    require_that(find_spec(driver), driver, f"the Python module {driver} is not installed")


@contextmanager
def database(alias: str, settings: dict[str, Any]) -> Iterator[str]:
    """An entry of `DATABASES` while the tests run, with the tables of `events`."""
    connections.settings[alias] = connections.configure_settings({"default": {}, alias: settings})[alias]
    try:
        call_command("migrate", "events", database=alias, verbosity=0)
        yield alias
    finally:
        connections[alias].close()
        del connections[alias]
        del connections.settings[alias]


def empty(alias: str) -> None:
    """Remove every row of `events` from a database."""
    connection = connections[alias]
    models = apps.get_app_config("events").get_models(include_auto_created=True)
    tables = [model._meta.db_table for model in models]
    connection.ops.execute_sql_flush(connection.ops.sql_flush(no_style(), tables))


def let_go(alias: str) -> None:
    """Close the connections of this thread and of the one that `sync_to_async` works on."""

    def close() -> None:
        connections[alias].close()

    close()
    asyncio.run(sync_to_async(close)())


@pytest.fixture(scope="session")
def redis_server() -> Iterator[Redis]:
    """A private Redis, with an append-only file that is written before a command is answered."""
    require_engine(Redis, "redis")
    with Redis(*EVERY_WRITE) as server:
        yield server


@pytest.fixture(scope="session")
def postgresql_server() -> Iterator[PostgreSQL]:
    """A private PostgreSQL."""
    require_engine(PostgreSQL, "psycopg")
    with PostgreSQL() as server:
        yield server


@pytest.fixture(scope="session")
def mariadb_server() -> Iterator[MariaDB]:
    """A private MariaDB."""
    require_engine(MariaDB, "MySQLdb")
    with MariaDB() as server:
        yield server


# `django_db_setup` comes first: it would take what it finds in DATABASES for its own and make a test database of it.


@pytest.fixture(scope="session")
def _postgresql(postgresql_server: PostgreSQL, django_db_setup, django_db_blocker) -> Iterator[str]:
    with django_db_blocker.unblock(), database("postgresql", postgresql_server.settings) as alias:
        yield alias


@pytest.fixture(scope="session")
def _mariadb(mariadb_server: MariaDB, django_db_setup, django_db_blocker) -> Iterator[str]:
    with django_db_blocker.unblock(), database("mariadb", mariadb_server.settings) as alias:
        yield alias


@pytest.fixture
def postgresql(_postgresql: str, django_db_blocker) -> Iterator[str]:
    """The alias of an empty database on PostgreSQL, which this test may use."""
    with django_db_blocker.unblock():
        empty(_postgresql)
        yield _postgresql
        let_go(_postgresql)


@pytest.fixture
def mariadb(_mariadb: str, django_db_blocker) -> Iterator[str]:
    """The alias of an empty database on MariaDB, which this test may use."""
    with django_db_blocker.unblock():
        empty(_mariadb)
        yield _mariadb
        let_go(_mariadb)

from __future__ import annotations

import os
import re
import sqlite3
import subprocess
import sys
import types
from pathlib import Path

import pytest
from django.core import mail
from django.core.asgi import get_asgi_application
from django.core.checks import Error, run_checks
from django.core.management import CommandError, call_command
from django.db import connections

from events.backends.base import BaseEventBackend
from events.checks import check_backends, check_connections, check_cors, check_lane, check_settings
from events.conf import KEYS
from events.registry import event_backends

DATABASE = "events.backends.database.DatabaseBackend"
MEMORY = "events.backends.memory.MemoryBackend"
REDIS = "events.backends.redis.RedisBackend"
FOLDER = "tests.backends.third_party.FolderBackend"
ROOT = Path(__file__).resolve().parent.parent


class SilentBackend(BaseEventBackend):
    """Half a backend, as somebody might begin one."""


@pytest.fixture
def backends(settings):
    """Sets `EVENTS["BACKENDS"]`, and forgets what was made before."""

    def configure(**entries):
        settings.EVENTS = {"BACKENDS": {"default": {"BACKEND": MEMORY}, **entries}}
        event_backends.reset()

    return configure


def test_a_site_that_sets_nothing_has_nothing_to_mend(db):
    """The defaults pass their own checks, on this test's database in WAL mode."""
    assert check_settings() == []
    assert check_backends(databases=["default"]) == []
    assert check_connections() == []
    assert [message for message in run_checks(databases=["default"]) if str(message.id).startswith("events.")] == []


@pytest.mark.parametrize(
    "key, hint",
    [
        ("KEEP_ALIVE", "Did you mean 'KEEPALIVE'?"),
        ("ring_events", "Did you mean 'RING_EVENTS'?"),
        ("ZZZ", f"Known are {', '.join(KEYS)}."),
        (5, f"Known are {', '.join(KEYS)}."),
    ],
)
def test_an_unknown_key_is_named_with_the_nearest_known_one(settings, key, hint):
    """A typing error in a setting is not silent."""
    settings.EVENTS = {key: 1}
    assert check_settings() == [Error(f"EVENTS has {key!r}, which is not known.", hint=hint, id="events.E001")]


@pytest.mark.parametrize("key", KEYS)
def test_a_wrong_value_of_each_setting_is_an_error(settings, key):
    """Each once, with where to read about it."""
    settings.EVENTS = {key: object}
    [message] = check_settings()
    assert message.id == "events.E002"
    assert str(message.msg).startswith(f"EVENTS[{key!r}] is ")
    assert message.hint == "See docs/settings.md."


def test_all_that_is_wrong_is_said_at_once(settings):
    """Nobody mends settings one error at a time."""
    settings.EVENTS = {"RETRY": 5, "KEEPALIVE": 0, "OTHER": 1}
    assert [message.id for message in check_settings()] == ["events.E001", "events.E002", "events.E002"]


def test_events_that_is_no_dictionary_is_said_once(settings):
    """Not once for each key that cannot be read from it; and the other check has nothing to add."""
    settings.EVENTS = ["RETRY"]
    [message] = check_settings()
    assert message.msg == "EVENTS is ['RETRY']: it must be a dictionary."
    assert check_backends() == []


@pytest.mark.parametrize(
    "entry, text",
    [
        ({"BACKEND": "nowhere.Backend"}, "is 'nowhere.Backend', which cannot be imported: No module named 'nowhere'"),
        ({"BACKEND": "events.wire.Cursor"}, "is 'events.wire.Cursor': it is not a BaseEventBackend."),
        ({}, "is None, which cannot be imported"),
        ({"BACKEND": MEMORY, "OPTION": {}}, "has 'OPTION': it knows BACKEND and OPTIONS."),
        ({"BACKEND": MEMORY, "OPTIONS": {"url": ""}}, "has 'url': MemoryBackend knows none."),
        (
            {"BACKEND": DATABASE, "OPTIONS": {"poll_intervall": 1, "DATABASE": "default"}},
            "has 'poll_intervall', 'DATABASE': DatabaseBackend knows ",
        ),
        (
            {"BACKEND": DATABASE, "OPTIONS": {"poll_intervall": 1, "DATABASE": "default"}},
            ". Did you mean 'poll_interval', 'database'?",
        ),
        ({"BACKEND": FOLDER, "OPTIONS": {}}, "must name a 'folder'."),
        ({"BACKEND": MEMORY, "OPTIONS": None}, "['OPTIONS'] is None: it must be a dictionary."),
        (MEMORY, "it must be a dictionary with BACKEND and perhaps OPTIONS."),
        ({"BACKEND": f"{__name__}.SilentBackend"}, "it lacks append, channels, clear, head, latest, read, tail, trim."),
    ],
)
def test_a_backend_that_cannot_be_made_is_an_error_that_says_why(backends, entry, text):
    """When the site starts, not when it first publishes; and the other backends are looked at, too."""
    backends(other=entry)
    [message] = check_backends()
    assert message.id == "events.E004"
    assert message.msg.startswith("EVENTS['BACKENDS']['other']")
    assert text in message.msg


def test_a_backends_own_messages_are_passed_on(backends):
    """Here: a database that the site does not have."""
    backends(other={"BACKEND": DATABASE, "OPTIONS": {"database": "elsewhere"}})
    [message] = check_backends(databases=["default"])
    assert message.id == "events.E003"
    assert "'elsewhere', which is not in DATABASES" in message.msg
    assert "'default'" in str(message.hint)


def test_two_aliases_of_one_database_are_one_log(backends):
    """Both would number the same rows, and each would think that it is alone."""
    backends(one={"BACKEND": DATABASE}, two={"BACKEND": DATABASE, "OPTIONS": {"database": "default"}})
    [message] = check_backends()
    assert message.id == "events.E005"
    assert message.msg == "EVENTS['BACKENDS'] 'one' and 'two' are one log: the database 'default'."


def test_two_aliases_of_one_place_are_one_log_whatever_it_is(backends, tmp_path):
    """A backend says where its log is; logs in several places are several."""
    folders = {
        name: {"BACKEND": FOLDER, "OPTIONS": {"folder": tmp_path / path}}
        for name, path in (("one", "a"), ("two", "b"), ("three", "b/../a"))
    }
    backends(**folders)
    [message] = check_backends()
    assert message.id == "events.E005"
    assert message.msg == f"EVENTS['BACKENDS'] 'one' and 'three' are one log: the folder '{tmp_path / 'a'}'."
    backends(one=folders["one"], two=folders["two"], database={"BACKEND": DATABASE}, memory={"BACKEND": MEMORY})
    assert check_backends() == []


def test_two_aliases_of_one_redis_are_one_log(backends):
    """Where the server, its database and the prefix are the same. No password is shown, and nothing connects."""
    urls = {"one": "redis://me:secret@127.0.0.1:1/2", "two": "redis://127.0.0.1:1/2", "three": "redis://127.0.0.1:1/3"}
    entries = {name: {"BACKEND": REDIS, "OPTIONS": {"url": url}} for name, url in urls.items()}
    entries["four"] = {"BACKEND": REDIS, "OPTIONS": {"url": urls["two"], "prefix": "other"}}
    backends(**entries)
    [message] = check_backends()
    assert message.id == "events.E005"
    assert message.msg.startswith("EVENTS['BACKENDS'] 'one' and 'two' are one log: ")
    assert "secret" not in message.msg


# W002


@pytest.fixture
def no_test(monkeypatch):
    """Lets the checks run as if this were no test."""
    monkeypatch.delattr(mail, "outbox")


def test_a_log_in_memory_is_a_warning_where_debug_is_off(backends, settings, no_test):
    """Each process would have a log of its own."""
    backends(safe={"BACKEND": DATABASE})
    assert not settings.DEBUG
    [message] = check_backends()
    assert message.id == "events.W002"
    assert message.msg == (
        "EVENTS['BACKENDS']['default'] is MemoryBackend while DEBUG is off: events published in one process do not "
        "reach the streams of another, and what was published is gone when the process ends."
    )
    assert DATABASE in str(message.hint)


class LonelyBackend(BaseEventBackend):
    """A log of one process that is kept; what it does is of no interest here."""

    crosses_processes = False
    append = read = latest = head = tail = channels = trim = clear = None  # type: ignore[assignment]


class ForgetfulBackend(LonelyBackend):
    """A log of all processes that none of them survives."""

    crosses_processes = True
    is_durable = False


@pytest.mark.parametrize(
    "backend, text",
    [
        (LonelyBackend, "events published in one process do not reach the streams of another."),
        (ForgetfulBackend, "what was published is gone when the process ends."),
    ],
)
def test_another_packages_log_is_judged_by_what_it_says_of_itself(backends, no_test, backend, text):
    """And only what is so is said."""
    backends(default={"BACKEND": f"{__name__}.{backend.__name__}"})
    [message] = check_backends()
    assert message.id == "events.W002"
    assert message.msg.endswith(f"while DEBUG is off: {text}")


def test_a_log_in_memory_is_fine_for_development(backends, settings, no_test):
    """One process, and nobody minds."""
    settings.DEBUG = True
    backends()
    assert check_backends() == []


def test_a_log_in_memory_is_fine_in_tests(backends, settings):
    """Those run with DEBUG off."""
    assert not settings.DEBUG
    backends()
    assert check_backends() == []


# W003


@pytest.mark.parametrize("age", [600, None])
def test_persistent_connections_under_asgi_are_a_warning(settings, monkeypatch, age):
    """For each database that has them, with what to do instead."""
    monkeypatch.setitem(connections.databases, "other", {**connections.databases["default"], "CONN_MAX_AGE": age})
    [message] = check_connections()
    assert message.id == "events.W003"
    assert message.msg.startswith(f"DATABASES['other']['CONN_MAX_AGE'] is {age} on a site with an ASGI_APPLICATION: ")
    assert '"pool": True' in str(message.hint)


def test_persistent_connections_under_wsgi_are_a_good_thing(settings, monkeypatch):
    """There, a thread serves one request after the other."""
    monkeypatch.setitem(connections.databases["default"], "CONN_MAX_AGE", 600)
    del settings.ASGI_APPLICATION
    assert check_connections() == []


# W006


@pytest.fixture
def on_postgresql(backends):
    """A site whose log is on PostgreSQL. Nothing connects to it."""
    database = {**connections.databases["default"], "ENGINE": "django.db.backends.postgresql", "OPTIONS": {}}
    connections.databases["unconnected"] = database
    backends(default={"BACKEND": DATABASE, "OPTIONS": {"database": "unconnected"}})
    yield connections["unconnected"]
    del connections["unconnected"]
    del connections.databases["unconnected"]


def test_postgresql_with_the_old_driver_is_a_warning(on_postgresql, monkeypatch):
    """It works, but cannot wait for a notification."""
    monkeypatch.setattr(type(on_postgresql), "Database", types.ModuleType("psycopg2"))
    [message] = check_backends()
    assert message.id == "events.W006"
    assert "'unconnected', which Django reaches with psycopg2" in message.msg
    assert 'pip install "django-live-events[postgres]"' in str(message.hint)


def test_postgresql_with_psycopg_3_is_fine(on_postgresql):
    """And the check connects to nothing."""
    assert check_backends() == []
    assert on_postgresql.connection is None


# W001


@pytest.fixture
def slow_database(settings, tmp_path):
    """A second database, on SQLite without WAL."""
    path = tmp_path / "slow.sqlite3"
    sqlite3.connect(path).close()
    connections.databases["slow"] = {**connections.databases["default"], "NAME": path, "OPTIONS": {}}
    settings.EVENTS = {"BACKENDS": {"default": {"BACKEND": DATABASE, "OPTIONS": {"database": "slow"}}}}
    event_backends.reset()
    yield path
    connections["slow"].close()
    del connections["slow"]
    del connections.databases["slow"]


@pytest.mark.django_db
def test_sqlite_without_wal_is_a_warning_with_the_settings_that_help(slow_database, django_db_blocker):
    """Every publish would wait for every reader, and nothing else would say so."""
    with django_db_blocker.unblock():
        [message] = check_backends(databases=["slow"])
    assert message.id == "events.W001"
    assert "'slow' is in journal mode 'delete'" in message.msg
    assert "PRAGMA journal_mode=WAL" in str(message.hint)


def test_no_database_is_touched_that_the_command_did_not_name(slow_database):
    """`manage.py check` without `--database` connects to nothing."""
    assert check_backends() == []
    assert check_backends(databases=["default"]) == []


def test_manage_py_check_fails_on_an_error(settings):
    """The checks are registered: what is wrong stops a deployment."""
    settings.EVENTS = {"RETRIES": 5}
    with pytest.raises(CommandError, match="Did you mean 'RETRY'"):
        call_command("check")


def check(folder: Path, *arguments: str, **environment: str) -> str:
    """What `manage.py check` of the demo site says, in a process of its own."""
    done = subprocess.run(
        [sys.executable, ROOT / "manage.py", "check", "--fail-level", "WARNING", *arguments],
        check=False,
        env={**os.environ, "DJANGO_SETTINGS_MODULE": "sse_site.settings", "DATA_DIR": str(folder), **environment},
        capture_output=True,
        text=True,
        timeout=60,
    )
    return f"{done.returncode} {done.stdout}{done.stderr}"


@pytest.mark.parametrize("arguments", [(), ("--database", "default")])
def test_the_demo_site_has_nothing_to_mend(tmp_path, arguments):
    """Not even a warning, with DEBUG off, as it is by default."""
    assert check(tmp_path, *arguments) == "0 System check identified no issues (0 silenced).\n"


def test_djangos_own_application_is_said(settings, monkeypatch):
    """Streams work; with one changed line each costs a part of it."""
    monkeypatch.setattr("tests.asgi.django", get_asgi_application(), raising=False)
    settings.ASGI_APPLICATION = "tests.asgi.django"
    [found] = check_lane()
    assert (found.id, found.is_serious()) == ("events.I001", False)
    assert found.msg.startswith("tests.asgi.django is Django's own application")
    assert "from events.asgi import get_asgi_application" in str(found.hint)


@pytest.mark.parametrize("path", ["tests.asgi.application", "tests.waiting.until", "nowhere.application", None])
def test_other_applications_are_not(settings, path):
    """Ours, one that wraps others, one that is not there, and a site without."""
    settings.ASGI_APPLICATION = path
    assert check_lane() == []


@pytest.mark.parametrize(
    "origins, middleware, found",
    [
        (["*"], ["corsheaders.middleware.CorsMiddleware"], ["events.W007"]),
        ((), ["corsheaders.middleware.CorsMiddleware"], []),
        (["*"], ["django.middleware.common.CommonMiddleware"], []),
        (["*"], ["nowhere.Middleware"], []),
        ("*", ["corsheaders.middleware.CorsMiddleware"], []),
    ],
)
def test_two_that_answer_other_origins(settings, origins, middleware, found):
    """One of them is not looked at, and it is said which."""
    settings.EVENTS = {"CORS_ORIGINS": origins}
    settings.MIDDLEWARE = middleware
    assert [message.id for message in check_cors()] == found


def test_a_site_is_warned_when_it_is_checked(tmp_path):
    """All the way, outside of any test's environment."""
    (tmp_path / "unwise.py").write_text(
        "from sse_site.settings import *\n"
        f"EVENTS = {{'BACKENDS': {{'default': {{'BACKEND': '{MEMORY}'}}}}}}\n"
        "DATABASES['default']['CONN_MAX_AGE'] = 60\n"
    )
    said = check(tmp_path, DJANGO_SETTINGS_MODULE="unwise", PYTHONPATH=f"{tmp_path}{os.pathsep}{ROOT}")
    assert said.startswith("1 ")
    assert re.findall(r"\(events\.(\w+)\)", said) == ["W002", "W003"]


def test_the_table_of_the_checks_is_complete():
    """Whoever is told an id finds it in docs/settings.md, and that names no other."""
    code = "".join(path.read_text() for path in (ROOT / "events").rglob("*.py"))
    page = (ROOT / "docs/settings.md").read_text()
    listed = re.findall(r"^\| `events\.(\w+)` \|", page, re.MULTILINE)
    assert sorted(set(re.findall(r'"events\.([EWI]\d{3})"', code))) == sorted(listed)

from __future__ import annotations

import sqlite3

import pytest
from django.core.checks import Error, run_checks
from django.core.management import CommandError, call_command
from django.db import connections

from events.backends.base import BaseEventBackend
from events.checks import check_backends, check_settings
from events.conf import KEYS
from events.registry import event_backends

DATABASE = "events.backends.database.DatabaseBackend"
MEMORY = "events.backends.memory.MemoryBackend"


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
        ({"BACKEND": MEMORY, "OPTIONS": None}, "['OPTIONS'] is None: it must be a dictionary."),
        (MEMORY, "it must be a dictionary with BACKEND and perhaps OPTIONS."),
        ({"BACKEND": f"{__name__}.SilentBackend"}, "it lacks append, clear, head, latest, read, tail, trim."),
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
    assert message.hint == "Name one of 'default'."


def test_two_aliases_of_one_database_are_one_log(backends):
    """Both would number the same rows, and each would think that it is alone."""
    backends(one={"BACKEND": DATABASE}, two={"BACKEND": DATABASE, "OPTIONS": {"database": "default"}})
    [message] = check_backends()
    assert message.id == "events.E005"
    assert message.msg == "EVENTS['BACKENDS'] 'one' and 'two' are one log: the database 'default'."


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

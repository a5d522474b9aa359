from __future__ import annotations

import hashlib
import re
import threading
from datetime import timedelta
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
from django.core.cache import cache
from django.core.cache.backends.locmem import LocMemCache
from django.core.exceptions import ValidationError
from django.db import OperationalError, connections, router, transaction
from django.test.utils import CaptureQueriesContext
from django.utils import timezone
from hypothesis import example, given
from hypothesis import strategies as st

from events import keys
from events.models import PublishKey

from .waiting import GUARD

LOCMEM = "django.core.cache.backends.locmem.LocMemCache"


class BrokenCache(LocMemCache):
    """A cache whose server is away."""

    def incr(self, key, delta=1, version=None):
        raise ConnectionError("the cache is gone")


class ForgetfulCache(LocMemCache):
    """A cache that has no room: an entry that was counted to is thrown out before the next look."""

    def incr(self, key, delta=1, version=None):
        try:
            return super().incr(key, delta, version)
        finally:
            self.delete(key, version)


class BusyCache(LocMemCache):
    """A cache in which another process counts its first request between the two steps of this one's."""

    def add(self, key, *args, **kwargs):
        super().add(key, *args, **kwargs)
        super().incr(key)
        return super().add(key, *args, **kwargs)

    def set(self, key, *args, **kwargs):
        super().add(key, 0)
        super().incr(key)
        super().set(key, *args, **kwargs)


class Router:
    """Sends publish keys to one database."""

    def __init__(self, database: str) -> None:
        self.database = database

    def db_for_read(self, model, **hints):
        return self.database if model is PublishKey else None

    db_for_write = db_for_read


@pytest.fixture(
    params=[pytest.param("default", marks=pytest.mark.django_db(transaction=True)), "postgresql", "mariadb"]
)
def database(request: pytest.FixtureRequest, monkeypatch) -> str:
    """The alias of the database that has the keys, on each engine."""
    alias = "default" if request.param == "default" else str(request.getfixturevalue(request.param))
    monkeypatch.setattr(router, "routers", [Router(alias)])
    return alias


@pytest.fixture
def minute(settings, monkeypatch):
    """Sets the clock by which requests are counted, in seconds since a full minute. The cache is empty."""
    settings.CACHES = {"default": {"BACKEND": LOCMEM, "LOCATION": "test_keys"}}
    cache.clear()
    keys._say_uncounted.cache_clear()
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(keys, "time", SimpleNamespace(time=lambda: 1_800_000_000 + clock.now))

    def set_clock(seconds: float) -> None:
        clock.now = seconds

    return set_clock


def made(**fields: Any) -> tuple[PublishKey, str]:
    """A key in the database, and its token."""
    key = PublishKey(**{"name": "till", "channels": "orders.*", **fields})
    token = keys.issue(key)
    key.save()
    return key, token


def used_at(key: PublishKey):
    return PublishKey.objects.values_list("last_used_at", flat=True).get(pk=key.pk)


# The token


def test_a_token_is_random_and_only_its_hash_is_kept():
    """256 bits behind a beginning that scanners for secrets know."""
    key, other = PublishKey(name="a"), PublishKey(name="b")
    token = keys.issue(key)
    assert re.fullmatch(r"lek_[A-Za-z0-9_-]{43}", token)
    assert token != keys.issue(other)
    assert key.digest == hashlib.sha256(token.encode()).hexdigest()
    assert (key.prefix, len(key.prefix)) == (token[:12], 12)
    assert not [value for value in vars(key).values() if value == token]


def test_a_token_finds_its_key(database):
    """With one query; another token finds nothing, nor does this one in another case."""
    key, token = made()
    made(name="other")
    with CaptureQueriesContext(connections[database]) as queries:
        assert keys.find(token) == key
    assert len(queries) == 1
    assert keys.find(keys.issue(PublishKey())) is None
    assert keys.find("lek_" + token[4:].swapcase()) is None
    assert keys.find(token + "x") is None
    assert keys.find(key.digest) is None


def test_a_digest_is_there_once_and_exact(database):
    """MariaDB's usual collation takes a for A."""
    key, _token = made()
    assert PublishKey.objects.filter(digest=key.digest).exists()
    assert not PublishKey.objects.filter(digest=key.digest.upper()).exists()


def test_a_key_that_is_switched_off_or_expired_or_gone_is_not_found(transactional_db):
    """From the next request on: each asks the database."""
    key, token = made(expires_at=timezone.now() + timedelta(hours=1))
    assert keys.find(token) == key
    PublishKey.objects.update(is_active=False)
    assert keys.find(token) is None
    PublishKey.objects.update(is_active=True, expires_at=timezone.now())
    assert keys.find(token) is None
    PublishKey.objects.update(expires_at=None)
    assert keys.find(token) == key
    key.delete()
    assert keys.find(token) is None


def test_keys_expire_on_a_site_without_time_zones(transactional_db, settings):
    """`USE_TZ = False`: times are naive."""
    settings.USE_TZ = False
    _key, token = made(expires_at=timezone.now() + timedelta(hours=1))
    assert keys.find(token) is not None
    PublishKey.objects.update(expires_at=timezone.now())
    assert keys.find(token) is None


@given(st.text(st.characters(categories=None)))
@example("")
@example("lek_" + "x" * 42)
@example("lek_" + "é" * 43)
@example("lek_" + "x" * 42 + "\n")
@example("lek_" + "x" * 43 + "\n")
@example("lek_" + "\0" * 43)
@example("lek_" + "\ud800" * 43)
@example("lek_" + "x" * 10_000_000)
def test_what_is_no_token_finds_nothing_and_asks_nobody(text):
    """Whatever text a header has: no error, and no query."""  # promise 16
    with mock.patch.object(PublishKey, "objects", None):
        assert keys.find(text) is None


# What it covers


@pytest.mark.parametrize(
    "channels, name, may",
    [
        ("news", "news", True),
        ("news", "News", False),
        ("news", "news.1", False),
        ("news", "new", False),
        ("orders.*", "orders.17", True),
        ("orders.*", "orders.", True),
        ("orders.*", "orders", False),
        ("orders.*", "Orders.17", False),
        ("orders.*", "orders.*", True),
        ("*", "anything", True),
        ("news\r\norders.*", "orders.1", True),
        (" news  alerts\t", "alerts", True),
        ("a*b", "axb", False),
        ("**", "news", False),
        ("", "", False),
        ("", "news", False),
    ],
)
def test_a_key_covers_its_names_and_what_begins_with_its_prefixes(channels, name, may):
    """And nothing else: what no form would take covers nothing."""
    assert keys.may_publish(PublishKey(channels=channels), name) is may


@pytest.mark.parametrize("channels", ["news", "*", "orders.*\r\nnews\n", " a  b\t", " ".join(["x"] * 100)])
def test_names_and_prefixes_are_channels_of_a_key(channels):
    """On a line each, or with blanks between them."""
    PublishKey(name="till", channels=channels, digest="0", prefix="lek_").full_clean(validate_unique=False)


@pytest.mark.parametrize(
    "channels, text",
    [
        ("", "This field cannot be blank."),
        (" \n", "A key is for 1 to 100 channels or prefixes with a last *, not for 0."),
        (" ".join(["x"] * 101), "A key is for 1 to 100 channels or prefixes with a last *, not for 101."),
        ("news, alerts", "'news,' is not a channel name: use 1 to 100 characters of A-Z a-z 0-9 . _ - A last * st"),
        ("news a*b", "'a*b' is not a channel name"),
        ("caf\xe9", "'caf\\xe9' is not a channel name"),
        ("x" * 101, "is not a channel name"),
        ("\0", "'\\x00' is not a channel name"),
        ("!control", "'!control' is not a channel name"),
    ],
)
def test_other_channels_are_refused_and_shown(channels, text):
    """As a channel's name is."""
    with pytest.raises(ValidationError) as caught:
        PublishKey(name="till", channels=channels, digest="0", prefix="lek_").full_clean(validate_unique=False)
    [message] = caught.value.message_dict.pop("channels")
    assert text in message
    assert not caught.value.message_dict.keys() - {"channels"}


def test_the_defaults_of_a_key():
    """On, for ever, ten requests a second; and no limit of none, which would be a key that is off."""
    key = PublishKey(name="till", channels="news", digest="0", prefix="lek_")
    key.full_clean(validate_unique=False)
    assert (key.is_active, key.expires_at, key.per_minute, key.last_used_at, str(key)) == (
        True,
        None,
        600,
        None,
        "till",
    )
    key.per_minute = 0
    with pytest.raises(ValidationError, match="greater than or equal to 1"):
        key.full_clean(validate_unique=False)


# How often


def test_so_many_requests_are_admitted_in_a_minute(minute):
    """Then the seconds to the next one; each key counts for itself."""
    key, other = PublishKey(pk=1, per_minute=3), PublishKey(pk=2, per_minute=3)
    minute(10)
    assert [keys.admit(key) for _ in range(5)] == [None, None, None, 50, 50]
    assert keys.admit(other) is None
    minute(59.5)
    assert keys.admit(key) == 0.5
    minute(60)
    assert [keys.admit(key) for _ in range(4)] == [None, None, None, 60]


def test_a_key_without_a_limit_is_not_counted(minute, settings, caplog):
    """The cache is not asked."""
    settings.CACHES = {"default": {"BACKEND": f"{__name__}.BrokenCache"}}
    assert keys.admit(PublishKey(pk=1, per_minute=None)) is None
    assert caplog.records == []


def test_requests_at_the_same_moment_are_all_counted(minute, settings):
    """Also those that find no count yet."""
    settings.CACHES = {"default": {"BACKEND": f"{__name__}.BusyCache", "LOCATION": "busy"}}
    assert keys.admit(PublishKey(pk=1, per_minute=1)) == 60
    assert keys.admit(PublishKey(pk=2, per_minute=2)) is None


def test_a_count_that_is_thrown_out_begins_anew(minute, settings, caplog):
    """A full cache lets more requests through, and stops none."""
    key = PublishKey(pk=1, per_minute=1)
    settings.CACHES = {"default": {"BACKEND": f"{__name__}.ForgetfulCache", "LOCATION": "forgetful"}}
    assert [keys.admit(key) for _ in range(3)] == [None, None, None]
    assert caplog.records == []


@pytest.mark.parametrize("path", [f"{__name__}.BrokenCache", "django.core.cache.backends.dummy.DummyCache"])
def test_a_cache_that_does_not_count_stops_nobody_and_is_logged_once_a_minute(minute, settings, caplog, path):
    """Who sends a request has shown a key, and the operator is told that nothing limits it."""
    settings.CACHES = {"default": {"BACKEND": path}}
    key = PublishKey(pk=1, per_minute=1)
    assert [keys.admit(key) for _ in range(3)] == [None, None, None]
    [record] = caplog.records
    assert (record.name, record.levelname) == ("events.keys", "WARNING")
    assert "requests with publish keys are not limited" in record.getMessage()
    assert record.exc_info is not None
    minute(60)
    assert [keys.admit(key) for _ in range(3)] == [None, None, None]
    assert len(caplog.records) == 2


# Its last use


def test_the_last_use_is_noted_once_a_minute(database):
    """However many processes know the key. Who has seen that it was used within the minute sends no query."""
    key, token = made()
    keys.used(key)
    first = used_at(key)
    assert timezone.now() - first < timedelta(seconds=GUARD)
    keys.used(key)
    assert used_at(key) == first
    fresh = keys.find(token)
    assert fresh is not None
    with CaptureQueriesContext(connections[database]) as queries:
        keys.used(fresh)
    assert len(queries) == 0
    earlier = first - timedelta(seconds=61)
    PublishKey.objects.update(last_used_at=earlier)
    fresh = keys.find(token)
    assert fresh is not None
    keys.used(fresh)
    assert used_at(key) > earlier


def test_the_use_of_a_key_that_is_gone_is_not_noted(database):
    """Somebody has deleted it meanwhile."""
    key, _token = made()
    PublishKey.objects.all().delete()
    keys.used(key)
    assert not PublishKey.objects.exists()


@pytest.mark.parametrize("database", ["postgresql", "mariadb"], indirect=True)
def test_who_holds_the_key_in_a_long_transaction_holds_up_nobody(database):
    """The note is left out, and made by a later use."""
    key, _token = made()
    held, release = threading.Event(), threading.Event()

    def hold() -> None:
        with transaction.atomic(using=database):
            PublishKey.objects.update(name="changed")
            held.set()
            release.wait(GUARD)
        connections[database].close()

    holder = threading.Thread(target=hold)
    holder.start()
    assert held.wait(GUARD)
    keys.used(key)
    assert holder.is_alive()
    assert used_at(key) is None
    release.set()
    holder.join(GUARD)
    keys.used(key)
    assert used_at(key) is not None


def test_a_database_that_refuses_the_note_is_logged(database, caplog):
    """The event is in the log by then: its publisher hears nothing of it, and the connection can be used on."""
    key, _token = made()

    def refuse(execute, sql, params, many, context):
        if sql.startswith("UPDATE"):
            raise OperationalError("the disk is full")
        return execute(sql, params, many, context)

    with transaction.atomic(using=database):
        with connections[database].execute_wrapper(refuse):
            keys.used(key)
        assert used_at(key) is None
    [record] = caplog.records
    assert record.getMessage() == f"the last use of a publish key is not noted: key={key.pk} error=the disk is full"

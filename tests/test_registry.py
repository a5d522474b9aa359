from __future__ import annotations

import asyncio
import io
import sys
import threading
from contextlib import aclosing
from typing import Any

import pytest
from django.core.management import call_command
from django.db import transaction
from django.test import AsyncRequestFactory

from events import EventStreamResponse, apublish, publish, publish_many
from events.backends.database import DatabaseBackend
from events.backends.memory import MemoryBackend
from events.exceptions import InvalidEventBackend
from events.registry import EventBackends, event_backends
from events.testing import EventParser, capture_events

from .backends.third_party import FolderBackend
from .waiting import GUARD

MEMORY = {"BACKEND": "events.backends.memory.MemoryBackend"}


class ClosingBackend(MemoryBackend):
    """Notes that it was closed."""

    closed = 0

    def close(self) -> None:
        type(self).closed += 1


def test_the_default_is_the_sites_database():
    """Without a setting there is one log, which needs no broker."""
    assert list(event_backends) == ["default"]
    assert isinstance(event_backends["default"], DatabaseBackend)


def test_a_backend_is_made_once_for_all_threads(settings, monkeypatch):
    """A log has tails to wake: two instances would not know of each other's."""
    settings.EVENTS = {"BACKENDS": {"default": MEMORY}}
    barrier, found = threading.Barrier(8), []
    made = MemoryBackend.__init__

    def init(self: MemoryBackend, params: Any) -> None:
        made(self, params)
        found.append(self)

    monkeypatch.setattr(MemoryBackend, "__init__", init)
    seen = []

    def ask() -> None:
        barrier.wait(10)
        seen.append(event_backends["default"])

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert len(found) == 1
    assert seen == found * 8


def test_who_waited_for_the_lock_takes_what_was_made_meanwhile(settings, monkeypatch):
    """The second look, under the lock, is what makes it one instance."""
    settings.EVENTS = {"BACKENDS": {"default": MEMORY}}
    first: list[object] = []

    class Lock:
        def __enter__(self) -> None:
            first.append(event_backends._made.setdefault("default", event_backends._make("default")))

        def __exit__(self, *exc_info: object) -> None: ...

    monkeypatch.setattr(event_backends, "_lock", Lock())
    assert event_backends["default"] is first[0]


@pytest.mark.parametrize("alias, hint", [("defualt", " Did you mean 'default'?"), ("zzz", "")])
def test_an_unknown_alias_is_refused_with_the_nearest_one(alias, hint):
    """`using=` is typed by people."""
    with pytest.raises(InvalidEventBackend) as caught:
        event_backends[alias]
    assert str(caught.value) == f"EVENTS['BACKENDS'] has no {alias!r}.{hint}"


def test_changed_settings_close_the_old_logs_and_make_new_ones(settings):
    """`override_settings` works, for the databases too."""
    settings.EVENTS = {"BACKENDS": {"default": {"BACKEND": f"{__name__}.ClosingBackend"}}}
    before = event_backends["default"]
    ClosingBackend.closed = 0
    settings.EVENTS = {"BACKENDS": {"default": MEMORY, "other": MEMORY}}
    assert ClosingBackend.closed == 1
    assert list(event_backends) == ["default", "other"]
    after = event_backends["default"]
    assert after is not before
    assert after is not event_backends["other"]
    settings.LANGUAGE_CODE = "de"
    assert event_backends["default"] is after


@pytest.mark.parametrize("path", ["", "x", ".x", "..", "events.nothing", 5])
def test_a_path_that_leads_nowhere_is_refused_whatever_is_wrong_with_it(settings, path):
    """One kind of error for all the ways in which an import fails."""
    settings.EVENTS = {"BACKENDS": {"default": {"BACKEND": path}}}
    with pytest.raises(InvalidEventBackend, match="which cannot be imported"):
        event_backends["default"]


def test_options_reach_the_backend(settings):
    """With the defaults of what was not set."""
    settings.EVENTS = {
        "BACKENDS": {
            "default": {"BACKEND": "events.backends.database.DatabaseBackend", "OPTIONS": {"poll_interval": 1}}
        }
    }
    backend = event_backends["default"]
    assert backend.alias == "default"
    assert backend.options["poll_interval"] == 1
    assert backend.options["database"] is None


def test_a_lock_held_at_a_fork_does_not_stop_the_child():
    """What another thread was about to make, the child makes anew."""  # promise 7
    backends = EventBackends()
    backends._lock.acquire()
    backends.after_fork()
    assert backends["default"].alias == "default"


def test_a_backend_without_its_driver_says_what_to_install(settings, monkeypatch):
    """The name of a module alone would send people looking."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "redis"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delitem(sys.modules, "events.backends.redis", raising=False)
    # What Python takes for a package that cannot be imported.
    monkeypatch.setitem(sys.modules, "redis", None)
    settings.EVENTS = {"BACKENDS": {"default": {"BACKEND": "events.backends.redis.RedisBackend"}}}
    with pytest.raises(InvalidEventBackend) as caught:
        event_backends["default"]
    assert "['default']['BACKEND'] is 'events.backends.redis.RedisBackend', which cannot be" in str(caught.value)
    assert 'pip install "django-live-events[redis]"' in str(caught.value)


# Several logs side by side


@pytest.fixture
def logs(settings, tmp_path, transactional_db, make_channel):
    """A site with three logs, and a channel that is published to in each of them."""
    folder = {"BACKEND": "tests.backends.third_party.FolderBackend", "OPTIONS": {"folder": tmp_path}}
    database = {"BACKEND": "events.backends.database.DatabaseBackend"}
    settings.EVENTS = {"BACKENDS": {"default": database, "memory": MEMORY, "folder": folder}}
    make_channel("news", history_events=None)
    return list(event_backends)


def data(using: str) -> list[str]:
    return [event.data for event in event_backends[using].read(["news"], -1, 100).events]


def test_each_log_has_what_was_published_to_it(logs):
    """Under an epoch of its own, and nothing of the others'."""
    for using in logs:
        publish("news", f"one in {using}", using=using)
        *_, last = publish_many([("news", "two"), ("news", "three")], using=using)
        assert last.id == str(event_backends[using].head())
    assert isinstance(event_backends["folder"], FolderBackend)
    for using in logs:
        assert data(using) == [f"one in {using}", "two", "three"]
        assert event_backends[using].channels() == ["news"]
    assert len({event_backends[using].head().epoch for using in logs}) == 3


def test_all_that_is_published_is_captured_whatever_log_it_goes_to(logs):
    """In the order of publishing."""
    with capture_events() as published:
        for using in logs:
            publish("news", using, using=using)
    assert [event.data for event in published] == logs


@pytest.mark.parametrize("using", ["default", "memory", "folder"])
def test_a_rolled_back_transaction_publishes_nothing_in_any_log(logs, using):
    """And a committed one fills in the cursor, also where the log is no part of the transaction."""
    with transaction.atomic():
        publish("news", "lost", using=using)
        transaction.set_rollback(True)
    with transaction.atomic():
        published = publish("news", "kept", using=using)
        assert published.id is None
        assert data(using) == []
    assert published.id == str(event_backends[using].head())
    assert data(using) == ["kept"]


@pytest.mark.parametrize("using", ["default", "memory", "folder"])
async def test_a_stream_reads_one_log(logs, using):
    """Replay and live, and nothing of the others."""
    for alias in logs:
        await apublish("news", f"before in {alias}", using=alias)
    response = EventStreamResponse(AsyncRequestFactory().get("/?from=earliest"), ["news"], using=using)
    parser, found = EventParser(), list[str]()
    body: Any = response.__aiter__()
    async with aclosing(body) as chunks:
        found += [event.data for event in parser.feed(await asyncio.wait_for(anext(chunks), GUARD))]
        while len(found) < 2:
            found += [event.data for event in parser.feed(await asyncio.wait_for(anext(chunks), GUARD))]
            if found == [f"before in {using}"]:
                for alias in logs:
                    await apublish("news", f"live in {alias}", using=alias)
    assert found == [f"before in {using}", f"live in {using}"]
    assert parser.last_event_id == str(await event_backends[using].ahead())


def test_a_log_is_chosen_in_the_terminal(logs):
    """With the alias that `publish(using=…)` takes."""
    for using in logs:
        out = io.StringIO()
        call_command("publish_event", "news", f"to {using}", "--using", using, stdout=out)
        assert out.getvalue().strip() == str(event_backends[using].head())
        assert data(using) == [f"to {using}"]

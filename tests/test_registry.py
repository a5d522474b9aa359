from __future__ import annotations

import threading
from typing import Any

import pytest

from events.backends.database import DatabaseBackend
from events.backends.memory import MemoryBackend
from events.exceptions import InvalidEventBackend
from events.registry import EventBackends, event_backends

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

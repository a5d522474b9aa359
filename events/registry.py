"""
Alias to backend: one instance per process, whatever thread or task asks.

Django's own connection handlers give every asyncio task an instance of its own; a log has tails to wake, and those
must be found from everywhere.
"""

from __future__ import annotations

import difflib
import os
import threading
from collections.abc import Mapping
from inspect import isabstract
from typing import TYPE_CHECKING, Any

from django.core.signals import setting_changed
from django.utils.module_loading import import_string

from .backends.base import BaseEventBackend, Params
from .conf import settings
from .exceptions import InvalidEventBackend

if TYPE_CHECKING:
    from collections.abc import Iterator


class EventBackends:
    """The configured logs, made when first asked for: `event_backends["default"]`."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._made: dict[str, BaseEventBackend] = {}

    def __getitem__(self, alias: str) -> BaseEventBackend:
        """The backend of `alias`. Raises `InvalidEventBackend` where there is none, or its settings are wrong."""
        if (backend := self._made.get(alias)) is None:
            with self._lock:
                if (backend := self._made.get(alias)) is None:
                    backend = self._made[alias] = self._make(alias)
        return backend

    def __iter__(self) -> Iterator[str]:
        return iter(settings.BACKENDS)

    def _make(self, alias: str) -> BaseEventBackend:
        configured = settings.BACKENDS
        if alias not in configured:
            near = difflib.get_close_matches(str(alias), configured, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise InvalidEventBackend(f"EVENTS['BACKENDS'] has no {alias!r}.{hint}")
        if not isinstance(configured[alias], Mapping):
            raise InvalidEventBackend(
                f"EVENTS['BACKENDS'][{alias!r}] is {configured[alias]!r}: "
                "it must be a dictionary with BACKEND and perhaps OPTIONS."
            )
        entry: dict[str, Any] = dict(configured[alias])
        path, options = entry.pop("BACKEND", None), entry.pop("OPTIONS", {})
        if entry:
            raise InvalidEventBackend(
                f"EVENTS['BACKENDS'][{alias!r}] has {', '.join(map(repr, entry))}: it knows BACKEND and OPTIONS."
            )
        if not isinstance(options, Mapping):
            raise InvalidEventBackend(
                f"EVENTS['BACKENDS'][{alias!r}]['OPTIONS'] is {options!r}: it must be a dictionary."
            )
        try:
            backend = import_string(path)
        except (ImportError, AttributeError, TypeError, ValueError) as error:
            raise InvalidEventBackend(
                f"EVENTS['BACKENDS'][{alias!r}]['BACKEND'] is {path!r}, which cannot be imported: {error}"
            ) from error
        if not (isinstance(backend, type) and issubclass(backend, BaseEventBackend)):
            raise InvalidEventBackend(
                f"EVENTS['BACKENDS'][{alias!r}]['BACKEND'] is {path!r}: it is not a BaseEventBackend."
            )
        if isabstract(backend):
            missing = ", ".join(sorted(backend.__abstractmethods__))
            raise InvalidEventBackend(f"EVENTS['BACKENDS'][{alias!r}]['BACKEND'] is {path!r}: it lacks {missing}.")
        return backend(Params(alias, options))

    def reset(self) -> None:
        """Forget all backends; the next look-up makes them anew from the settings."""
        with self._lock:
            made, self._made = self._made, {}
        for backend in made.values():
            backend.close()

    def after_fork(self) -> None:
        """A lock that another thread held at the fork would be held in the child for ever."""
        self._lock = threading.Lock()


event_backends = EventBackends()
os.register_at_fork(after_in_child=event_backends.after_fork)


def _on_setting_changed(*, setting: str, **kwargs: Any) -> None:
    if setting in ("EVENTS", "DATABASES"):
        event_backends.reset()


setting_changed.connect(_on_setting_changed, dispatch_uid="events.registry")

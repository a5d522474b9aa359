"""System checks of the settings."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from django.conf import settings as django_settings
from django.core.checks import CheckMessage, Error, Tags, register
from django.core.exceptions import ImproperlyConfigured

from .backends.database import DatabaseBackend
from .conf import KEYS, settings
from .exceptions import InvalidEventBackend
from .registry import event_backends

if TYPE_CHECKING:
    from collections.abc import Sequence


@register("events")
def check_settings(**kwargs: Any) -> list[CheckMessage]:
    """E001: a key of `EVENTS` that is not known. E002: a value of the wrong kind."""
    configured = getattr(django_settings, "EVENTS", {})
    messages: list[CheckMessage] = []
    for key in configured if isinstance(configured, Mapping) else ():
        if key not in KEYS:
            near = difflib.get_close_matches(str(key).upper(), KEYS, n=1)
            hint = f"Did you mean {near[0]!r}?" if near else f"Known are {', '.join(KEYS)}."
            messages.append(Error(f"EVENTS has {key!r}, which is not known.", hint=hint, id="events.E001"))
    for key in KEYS:
        try:
            getattr(settings, key)
        except ImproperlyConfigured as error:
            message = Error(str(error), hint="See docs/settings.md.", id="events.E002")
            # An EVENTS that is no dictionary is wrong once, not once for each key.
            if message not in messages:
                messages.append(message)
    return messages


@register("events", Tags.database)
def check_backends(databases: Sequence[str] | None = None, **kwargs: Any) -> list[CheckMessage]:
    """E004: a backend that cannot be made. E005: two aliases for one database. And what each backend says of itself."""
    messages: list[CheckMessage] = []
    logs: dict[str, str] = {}
    try:
        aliases = list(event_backends)
    except ImproperlyConfigured:
        # E002 has said so.
        return []
    for alias in aliases:
        try:
            backend = event_backends[alias]
        except InvalidEventBackend as error:
            messages.append(Error(str(error), id="events.E004"))
            continue
        if isinstance(backend, DatabaseBackend):
            other = logs.setdefault(backend.database, alias)
            if other != alias:
                messages.append(
                    Error(
                        f"EVENTS['BACKENDS'] {other!r} and {alias!r} are one log: the database {backend.database!r}.",
                        hint="Give one of them another database, or publish to both channels in one log.",
                        id="events.E005",
                    )
                )
        messages.extend(backend.check(databases))
    return messages

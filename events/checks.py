"""System checks of the settings."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from django.conf import settings as django_settings
from django.core import mail
from django.core.checks import CheckMessage, Error, Tags, register
from django.core.checks import Info as CheckInfo
from django.core.checks import Warning as CheckWarning
from django.core.exceptions import ImproperlyConfigured
from django.core.handlers.asgi import ASGIHandler
from django.db import connections
from django.utils.module_loading import import_string

from .backends.database import DatabaseBackend
from .conf import KEYS, settings
from .cors import is_answered_elsewhere
from .exceptions import InvalidEventBackend
from .registry import event_backends

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .backends.base import BaseEventBackend


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
    """
    E004: a backend that cannot be made. E005: two aliases for one log. And what each backend says of itself.

    W002: a log that other processes do not see, or that ends with its own, where `DEBUG` is off. W006: a log on
    PostgreSQL with a driver that cannot wait for notifications.
    """
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
        if (log := backend.log_identity()) is not None and (other := logs.setdefault(log, alias)) != alias:
            messages.append(
                Error(
                    f"EVENTS['BACKENDS'] {other!r} and {alias!r} are one log: {log}.",
                    hint="Remove one of them, or give it a place of its own.",
                    id="events.E005",
                )
            )
        # Tests run with DEBUG off, and a log in memory is right there.
        if not (backend.crosses_processes and backend.is_durable) and not django_settings.DEBUG and not _in_tests():
            messages.append(_not_for_production(backend))
        messages.extend(backend.check(databases))
        if isinstance(backend, DatabaseBackend) and _polls_for_want_of_a_driver(backend.database):
            messages.append(
                CheckWarning(
                    f"The log is in the PostgreSQL database {backend.database!r}, which Django reaches with psycopg2: "
                    "a process cannot wait there for the events of others, and asks for them at intervals.",
                    hint='Install psycopg 3, which Django then takes: pip install "django-live-events[postgres]"',
                    id="events.W006",
                )
            )
    return messages


def _in_tests() -> bool:
    """Whether Django's `setup_test_environment` has run, which gives mail a box."""
    return hasattr(mail, "outbox")


def _not_for_production(backend: BaseEventBackend) -> CheckMessage:
    faults = []
    if not backend.crosses_processes:
        faults.append("events published in one process do not reach the streams of another")
    if not backend.is_durable:
        faults.append("what was published is gone when the process ends")
    return CheckWarning(
        f"EVENTS['BACKENDS'][{backend.alias!r}] is {type(backend).__name__} while DEBUG is off: "
        f"{', and '.join(faults)}.",
        hint="Use another backend: events.backends.database.DatabaseBackend needs nothing beside the site's database.",
        id="events.W002",
    )


def _polls_for_want_of_a_driver(database: str) -> bool:
    if database not in connections:
        # E003 has said so.
        return False
    connection: Any = connections[database]
    return bool(connection.vendor == "postgresql" and connection.Database.__name__ == "psycopg2")


@register("events")
def check_lane(**kwargs: Any) -> list[CheckMessage]:
    """I001: streams stay in Django, because the site's ASGI application is Django's own."""
    path = getattr(django_settings, "ASGI_APPLICATION", None)
    if not path:
        return []
    try:
        application = import_string(path)
    except ImportError:
        # The server says so, and better.
        return []
    # What wraps another application is not looked into.
    if not isinstance(application, ASGIHandler):
        return []
    return [
        CheckInfo(
            f"{path} is Django's own application: each stream keeps its request, and costs about twice the memory "
            "that it would need, and half as much CPU again.",
            hint="In that module, write 'from events.asgi import get_asgi_application' in place of "
            "'from django.core.asgi import get_asgi_application'.",
            id="events.I001",
        )
    ]


@register("events")
def check_connections(**kwargs: Any) -> list[CheckMessage]:
    """W003: persistent database connections on a site that runs under ASGI."""
    if not getattr(django_settings, "ASGI_APPLICATION", None):
        return []
    return [
        CheckWarning(
            f"DATABASES[{alias!r}]['CONN_MAX_AGE'] is {age!r} on a site with an ASGI_APPLICATION: each request has a "
            "thread and a connection of its own, so none is used again, and each stays open until it is collected as "
            "garbage or the database refuses more.",
            hint="Leave CONN_MAX_AGE at 0. To save the time of connecting, pool: on PostgreSQL with "
            '"OPTIONS": {"pool": True}, which needs psycopg[pool]; elsewhere with a pooler in front of the database.',
            id="events.W003",
        )
        for alias, database in connections.settings.items()
        if (age := database["CONN_MAX_AGE"]) != 0
    ]


@register("events")
def check_cors(**kwargs: Any) -> list[CheckMessage]:
    """W007: a setting that is not looked at, because another package answers."""
    try:
        if not settings.CORS_ORIGINS or not is_answered_elsewhere(tuple(django_settings.MIDDLEWARE)):
            return []
    except (ImproperlyConfigured, ImportError):
        # E002 has said so, or Django says it when it starts.
        return []
    return [
        CheckWarning(
            "EVENTS['CORS_ORIGINS'] is not looked at: django-cors-headers is in MIDDLEWARE, and answers.",
            hint="Remove CORS_ORIGINS, and let CORS_URLS_REGEX cover the app's URLs: see docs/access.md.",
            id="events.W007",
        )
    ]

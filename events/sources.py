"""
What makes a channel's interval messages.

A site's own, in a module `sources.py` of any installed app (it is imported when Django starts):

    from events import source

    @source("temperature")
    def temperature(channel):
        return {"celsius": sensor.read()}
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timezone
from functools import lru_cache
from types import SimpleNamespace
from typing import Any, TypeVar

from django.conf import settings as django_settings
from django.template import Context, Engine, Template
from django.utils.timezone import localtime

from .exceptions import EventsError
from .models import Channel
from .threads import call

Source = TypeVar("Source", bound=Callable[[Channel], Any])

#: What a channel's template knows of it.
SHOWN_TO_TEMPLATES = ("name", "title", "description", "interval", "event_type")

_registered: dict[str, Callable[[Channel], Any]] = {}


def source(name: str) -> Callable[[Source], Source]:
    """
    Register a function `(channel) -> data or None` under `name`, to be chosen in the admin.

    It may be sync or async, and runs on a thread of the ticker's, once per interval in the whole deployment. None
    publishes nothing. What it raises is logged and shown in the admin; the next interval tries again. Raises
    `ValueError` for a name that is empty, over 100 characters, or taken.
    """
    # A bare @source passes the function itself.
    if not isinstance(name, str) or not 1 <= len(name) <= 100:  # type: ignore[redundant-expr]
        raise ValueError(f'a source\'s name is text of 1 to 100 characters, not {name!r}: write @source("name")')

    def register(function: Source) -> Source:
        taken = _registered.get(name)
        if name in BUILT_IN or (taken is not None and _place(taken) != _place(function)):
            raise ValueError(f"a source called {name!r} is registered already: choose another name")
        _registered[name] = function
        return function

    return register


def _place(function: Callable[..., Any]) -> tuple[str | None, str | None]:
    # A module that is imported twice registers the same function again.
    return getattr(function, "__module__", None), getattr(function, "__qualname__", None)


def names() -> list[str]:
    """The names that a channel's `source` may have."""
    return [*BUILT_IN, *sorted(_registered)]


def make(channel: Channel, *, due_at: float, number: int) -> Any:
    """
    The data of one interval message, or None.

    `due_at` is in seconds since 1970; `number` counts the channel's messages from 1. Raises `EventsError` where no
    source has the channel's name for it, and whatever the source raises.
    """
    if (built_in := BUILT_IN.get(channel.source)) is not None:
        return built_in(channel, due_at, number)
    function = _registered.get(channel.source)
    if function is None:
        raise EventsError(f"no source is called {channel.source!r}: there are {', '.join(names())}")
    return call(function, channel)


def clock(channel: Channel, due_at: float, number: int) -> str:
    """The classic demonstration of server-sent events: "Message at <ISO time>"."""
    now = _datetime(due_at)
    local = localtime(now) if django_settings.USE_TZ else now.astimezone()
    return f"Message at {local.isoformat(timespec='milliseconds' if due_at % 1 else 'seconds')}"


def template(channel: Channel, due_at: float, number: int) -> str:
    """The channel's template, rendered as plain text: a page shows it with `textContent`, which needs no escaping."""
    # Not the row itself: by way of its groups a template could read users, and publish what is theirs.
    shown = SimpleNamespace(**{field: getattr(channel, field) for field in SHOWN_TO_TEMPLATES})
    context = Context({"now": _datetime(due_at), "n": number, "channel": shown}, autoescape=False)
    return _compile(channel.template).render(context)


def _datetime(due_at: float) -> datetime:
    return datetime.fromtimestamp(due_at, tz=timezone.utc if django_settings.USE_TZ else None)


@lru_cache(maxsize=256)
def _compile(text: str) -> Template:
    return Engine.get_default().from_string(text)


BUILT_IN: dict[str, Callable[[Channel, float, int], Any]] = {"clock": clock, "template": template}

"""
The settings, read at every access so that `override_settings` works.

One dictionary, `EVENTS`, in the site's settings. Each property below is one key of it: its type, its default, and
what is wrong with a value that is refused.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from django.conf import settings as django_settings
from django.core.exceptions import ImproperlyConfigured

DEFAULT_BACKENDS: dict[str, dict[str, Any]] = {
    "default": {"BACKEND": "events.backends.database.DatabaseBackend"},
}


def _refuse(key: str, value: object, wanted: str) -> ImproperlyConfigured:
    return ImproperlyConfigured(f"EVENTS[{key!r}] is {value!r}: it must be {wanted}.")


def _is_origin(value: object) -> bool:
    """Whether a browser could send `value` as an `Origin`: without a path, in lower case."""
    if value == "*":
        return True
    if not isinstance(value, str):
        return False
    try:
        parts = urlsplit(value)
    except ValueError:
        return False
    return bool(parts.netloc) and value == f"{parts.scheme}://{parts.netloc}".lower() and "@" not in value


class Settings:
    """The app's settings with their defaults. Raises `ImproperlyConfigured` for a value of the wrong kind."""

    @property
    def _dict(self) -> Mapping[str, Any]:
        value = getattr(django_settings, "EVENTS", {})
        if not isinstance(value, Mapping):
            raise ImproperlyConfigured(f"EVENTS is {value!r}: it must be a dictionary.")
        return value

    def _number(self, key: str, default: float, least: float) -> float:
        value = self._dict.get(key, default)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not least <= value < math.inf:
            raise _refuse(key, value, f"a number from {least} on")
        return value

    def _count(self, key: str, default: int, least: int = 1) -> int:
        value = self._dict.get(key, default)
        if type(value) is not int or value < least:
            raise _refuse(key, value, f"a whole number from {least} on")
        return value

    def _number_or_none(self, key: str, least: float) -> float | None:
        return None if self._dict.get(key) is None else self._number(key, least, least)

    def _count_or_none(self, key: str) -> int | None:
        return None if self._dict.get(key) is None else self._count(key, 1)

    @property
    def BACKENDS(self) -> Mapping[str, Mapping[str, Any]]:
        """The logs: alias to `{"BACKEND": dotted path, "OPTIONS": {…}}`. Default: the site's database."""
        value = self._dict.get("BACKENDS", DEFAULT_BACKENDS)
        if not isinstance(value, Mapping) or "default" not in value:
            raise _refuse("BACKENDS", value, 'a dictionary with an entry "default"')
        return value

    @property
    def KEEPALIVE(self) -> float:
        """Seconds of silence after which a stream writes a comment. Default 15."""
        return self._number("KEEPALIVE", 15, 0.05)

    @property
    def RETRY(self) -> tuple[int, int]:
        """Milliseconds after which a client comes back: each stream draws a value between the two."""
        value = self._dict.get("RETRY", (1000, 5000))
        if (
            not isinstance(value, (tuple, list))
            or len(value) != 2
            or not all(type(bound) is int for bound in value)
            or not 0 <= value[0] <= value[1]
        ):
            raise _refuse("RETRY", value, "two whole numbers of milliseconds, the smaller one first")
        return (value[0], value[1])

    @property
    def MAX_CHANNELS_PER_STREAM(self) -> int:
        """How many channels one stream may follow. Default 50."""
        return self._count("MAX_CHANNELS_PER_STREAM", 50)

    @property
    def MAX_EVENT_BYTES(self) -> int:
        """The largest data of one event, in bytes of UTF-8. Default 262144."""
        return self._count("MAX_EVENT_BYTES", 262_144)

    @property
    def RING_EVENTS(self) -> int:
        """How many of a channel's newest events a process keeps encoded. Default 1000."""
        return self._count("RING_EVENTS", 1000)

    @property
    def RING_BYTES(self) -> int:
        """How many bytes of a channel's newest events a process keeps encoded. Default 8 MiB."""
        return self._count("RING_BYTES", 8 * 1024 * 1024)

    @property
    def SLOW_CLIENT_TIMEOUT(self) -> float:
        """Seconds after which a client that takes nothing of what it was sent is closed. Default 30."""
        return self._number("SLOW_CLIENT_TIMEOUT", 30, 0.05)

    @property
    def MAX_STREAMS(self) -> int | None:
        """How many streams a process keeps open. Further clients are put off. Default None: any number."""
        return self._count_or_none("MAX_STREAMS")

    @property
    def MAX_STREAMS_PER_USER(self) -> int | None:
        """How many streams of one signed-in user a process keeps open. Default None: any number."""
        return self._count_or_none("MAX_STREAMS_PER_USER")

    @property
    def MAX_STREAMS_PER_ADDRESS(self) -> int | None:
        """How many streams of one address a process keeps open. Default None: any number."""
        return self._count_or_none("MAX_STREAMS_PER_ADDRESS")

    @property
    def MAX_STREAM_AGE(self) -> float | None:
        """Seconds after which a stream ends and its client comes back; each draws 80 to 100% of it. Default None."""
        return self._number_or_none("MAX_STREAM_AGE", 0.05)

    @property
    def DRAIN_SPREAD(self) -> float:
        """Seconds over which the clients of a process that stops come back. Default 5."""
        return self._number("DRAIN_SPREAD", 5, 0)

    @property
    def RECHECK(self) -> float:
        """Seconds within which it is asked again whether who has a stream open may still read. Default 30."""
        return self._number("RECHECK", 30, 0.05)

    @property
    def CORS_ORIGINS(self) -> tuple[str, ...]:
        """The origins whose pages may read streams, histories and publish; "*" for all. Default (): none."""
        value = self._dict.get("CORS_ORIGINS", ())
        if not isinstance(value, (tuple, list)) or not all(_is_origin(origin) for origin in value):
            raise _refuse("CORS_ORIGINS", value, 'a list of origins such as "https://www.example.org", or of "*"')
        return tuple(value)


#: Every key that `EVENTS` may have.
KEYS = tuple(name for name, value in vars(Settings).items() if isinstance(value, property) and name.isupper())

settings = Settings()

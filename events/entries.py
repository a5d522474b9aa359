"""
The newest events as pages show them before a script runs: for visitors without JavaScript, and as everybody's first.

What an entry shows of an event's data is what `static/events/live-channel.js` shows of it, with the same limits: who
changes one changes the other.
"""

from __future__ import annotations

import json
import logging
import math
import re
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Any, NoReturn

from django.utils import timezone

from .exceptions import BackendUnavailable
from .registry import event_backends
from .wire import Cursor

if TYPE_CHECKING:
    from collections.abc import Collection

    from .backends.base import StoredEvent

logger = logging.getLogger("events.entries")

#: Entries of one page, whatever it asks for.
MAX_ENTRIES = 50
#: Characters of one entry, keys of one entry, and characters of one key and of one value. A character is what
#: JavaScript takes for one: those beyond U+FFFF count twice.
MAX_TEXT, MAX_FIELDS, MAX_FIELD = 4000, 24, 240
#: The colours of `live.css`: a channel has one by its place among those of the page.
HUES = 8
#: Characters of all events of one page: to read JSON takes long, and a page is for everybody who asks.
MAX_READ = 2**20

_SURROGATE = re.compile(r"[\ud800-\udfff]")
#: JavaScript knows no whole numbers beyond 2^53, and puts keys that are numbers before all others.
_LONG_NUMBER = re.compile(r"\d{16}")
_NUMBER_AS_KEY = re.compile(r'"\d{1,10}"\s*:')
_INDEX = re.compile(r"0|[1-9]\d{0,9}")
#: A string, to be passed over, or a number that Python writes as 1e-05.
_STRING_OR_TINY = re.compile(r'"(?:[^"\\]|\\.)*"|-?\d+(?:\.\d+)?e-\d+')


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """
    What a page shows of one event.

    `id` is its cursor, `at` when it was published, in the current time zone. Either `text`, and `is_value` says that it
    is a value of JSON's; or, of a JSON object, `fields`: its keys and their values as texts. `rest` is how much was cut
    off: characters of the text, or fields. `hue` is the number of its channel's colour.
    """

    id: str
    channel: str
    hue: int
    event: str
    at: datetime
    text: str | None = None
    is_value: bool = False
    fields: list[tuple[str, str]] = field(default_factory=list)
    rest: int = 0


def newest_entries(names: Collection[str], limit: int) -> tuple[list[Entry], str]:
    """
    The newest events of the channels, newest first, at most `limit` and `MAX_ENTRIES`; and the cursor they end at.

    Where events are large there are fewer: those that together have `MAX_READ` characters, but always the newest.

    A stream that goes on from the cursor brings exactly what follows them. So the log is asked first for its head, and
    what is above that is the stream's. Where the log cannot be reached there are no entries, the cursor may be empty,
    and the site's log says why. Who may see the entries is the caller's to ask.
    """
    backend = event_backends["default"]
    cursor = ""
    try:
        head = backend.head()
        cursor = str(head)
        newest = backend.newest(names, min(limit, MAX_ENTRIES)) if names else ()
    except BackendUnavailable as error:
        logger.warning("a page has no events: channels=%s error=%s", ",".join(names), error)
        return [], cursor
    hues = {name: place % HUES for place, name in enumerate(names)}
    entries: list[Entry] = []
    left = MAX_READ
    for event in reversed(newest):
        if event.position > head.position:
            continue
        left -= len(event.data)
        if left < 0 and entries:
            break
        entries.append(entry_of(event, head.epoch, hues[event.channel]))
    return entries, cursor


def entry_of(event: StoredEvent, epoch: str, hue: int) -> Entry:
    """What a page shows of the event."""
    shown = _summary(event.data) if event.is_json else _whole(event.data)
    return Entry(
        id=str(Cursor(epoch, event.position)),
        channel=event.channel,
        hue=hue,
        event=event.type,
        at=datetime.fromtimestamp(event.created_at, timezone.get_current_timezone()),
        **shown,
    )


def _summary(data: str) -> dict[str, Any]:
    """What is shown of JSON."""
    try:
        value = _loads(data)
        if isinstance(value, str):
            return _whole(value)
        if not isinstance(value, dict) or not value:
            return _whole(_dumps(value), is_value=True)
        fields = [
            (_cut(key, MAX_FIELD)[0], _cut_field(each if isinstance(each, str) else _dumps(each)))
            for key, each in list(value.items())[:MAX_FIELDS]
        ]
        return {"fields": fields, "rest": max(0, len(value) - MAX_FIELDS)}
    except (ValueError, RecursionError):
        # Nothing that this app has written, or nested too deeply: showing it as it is beats showing no page.
        return _whole(data, is_value=True)


def _whole(text: str, *, is_value: bool = False) -> dict[str, Any]:
    text, rest = _cut(text, MAX_TEXT)
    return {"text": text, "is_value": is_value, "rest": rest}


def _cut_field(text: str) -> str:
    text, rest = _cut(text, MAX_FIELD)
    return f"{text}…" if rest else text


def _cut(text: str, limit: int) -> tuple[str, int]:
    """The text's first characters, as JavaScript counts them, and how many follow."""
    if text.isascii():
        return text[:limit], max(0, len(text) - limit)
    units = text.encode("utf-16-le", "surrogatepass")
    # No page can be encoded with half a character. Browsers show U+FFFD for it, which is what this puts there.
    return units[: 2 * limit].decode("utf-16-le", "replace"), max(0, len(units) // 2 - limit)


# JSON as `JSON.parse` reads it and `JSON.stringify` writes it


def _loads(data: str) -> Any:
    """What the text says, so that `_dumps` writes numbers and the order of keys as JavaScript does."""
    return json.loads(
        data,
        parse_float=_number,
        parse_int=_number if _LONG_NUMBER.search(data) else None,
        parse_constant=_refuse,
        object_pairs_hook=_object if _NUMBER_AS_KEY.search(data) else None,
    )


def _refuse(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number of JSON's")


def _number(text: str) -> float | None:
    """The number, as an int where JavaScript writes it without a fraction or an exponent; None where it is too big."""
    value = float(text)
    if not math.isfinite(value):
        return None
    if value.is_integer() and abs(value) < 1e21:
        # Not int(value): of 2**70 JavaScript writes the digits that tell it from its neighbours, and then zeros.
        return int(Decimal(repr(value)))
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    indexes = sorted((key for key in found if _INDEX.fullmatch(key) and int(key) < 2**32 - 1), key=int)
    return {**{key: found[key] for key in indexes}, **found}


def _dumps(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    if "e-" in text:
        text = _STRING_OR_TINY.sub(_tiny, text)
    return text if text.isascii() else _SURROGATE.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def _tiny(found: re.Match[str]) -> str:
    """A number below 0.0001: written out from 0.000001 on, and below with an exponent without zeros before it."""
    text = found[0]
    if text.startswith('"'):
        return text
    number, exponent = text.split("e-")
    return f"{Decimal(text):f}" if int(exponent) <= 6 else f"{number}e-{int(exponent)}"

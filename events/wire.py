"""
The bytes of a stream: `text/event-stream` as the HTML standard defines it.

https://html.spec.whatwg.org/multipage/server-sent-events.html

A leaf: it imports neither Django nor anything else of this app but its errors.

Deliberate divergences from what other servers write, each because a client in use breaks on it:

* No blank line is written that does not end an event. The standard lets a parser ignore it; httpx-sse and
  fetch-event-source dispatch an empty event, and the openai client raises once an `id:` has been sent.
* `retry:` therefore rides in a block with something else, and a keep-alive is a comment line and no more.
"""

from __future__ import annotations

import json
import random
import re
from dataclasses import dataclass

from .exceptions import InvalidChannelName, InvalidEvent

#: The content type of a stream. No charset: "Event streams [...] are always encoded as UTF-8."
CONTENT_TYPE = "text/event-stream"

#: What is written in silence, so that proxies and clients see that the connection lives.
KEEPALIVE = b":\n"

#: The type that a client takes where no `event:` line is.
DEFAULT_TYPE = "message"

MAX_CHANNEL_NAME = 100
MAX_TYPE = 100
MAX_KEY = 200
#: A cursor travels in the `Last-Event-ID` request header, where CORS allows 128 bytes without a preflight.
MAX_CURSOR = 128

#: The channel of messages from process to process (`events.control`). No name of a user's: those have no `!`.
CONTROL_CHANNEL = "!control"

_CHANNEL_NAME = re.compile(r"[A-Za-z0-9._-]{1,100}")
_CHANNEL_PATTERN = re.compile(r"[A-Za-z0-9._-]{0,99}\*")
_CURSOR = re.compile(r"([A-Za-z0-9]{1,32})-(0|[1-9][0-9]{0,18})")
#: "lines [...] separated by either a CRLF, a single LF or a single CR". `str.splitlines` splits on seven more.
_LINE_END = re.compile(r"\r\n|\r|\n")
_FORBIDDEN_IN_FIELD = re.compile(r"[\r\n\0]")
_SURROGATE = re.compile(r"[\ud800-\udfff]")


def shown(value: object, limit: int = 80) -> str:
    """`value` as an error message may show it: quoted, with control characters escaped, and cut at `limit`."""
    text = ascii(value)
    return text if len(text) <= limit else f"{text[:limit]}… ({len(text)} characters)"


def is_channel_name(value: object) -> bool:
    """Whether `value` is the name of one channel: 1 to 100 characters of `A-Z a-z 0-9 . _ -`."""
    return isinstance(value, str) and _CHANNEL_NAME.fullmatch(value) is not None


def is_channel_pattern(value: object) -> bool:
    """Whether `value` configures all channels with a prefix: up to 99 characters of a name, then `*`."""
    return isinstance(value, str) and _CHANNEL_PATTERN.fullmatch(value) is not None


def covers(pattern: str, name: str) -> bool:
    """Whether a name, or a prefix followed by `*`, stands for the channel `name`."""
    return name.startswith(pattern[:-1]) if pattern.endswith("*") else name == pattern


def validate_channel_name(value: object) -> str:
    """Return `value` if it is a channel's name. Raises `InvalidChannelName`, which says what a name may be."""
    if not is_channel_name(value):
        raise InvalidChannelName(
            f"{shown(value)} is not a channel name: use 1 to {MAX_CHANNEL_NAME} characters of A-Z a-z 0-9 . _ -"
        )
    return str(value)


def _validate_field(field: str, value: object, limit: int) -> str:
    if not isinstance(value, str):
        raise InvalidEvent(f"an event's {field} is text, not {type(value).__name__}: {shown(value)}")
    if _FORBIDDEN_IN_FIELD.search(value):
        raise InvalidEvent(f"an event's {field} may not contain CR, LF or NUL: {shown(value)}")
    if len(value) > limit:
        raise InvalidEvent(f"an event's {field} has at most {limit} characters, not {len(value)}: {shown(value)}")
    return validate_text(value, field)


def validate_type(value: object) -> str:
    """
    Return an event's type (the `event:` field). Raises `InvalidEvent` for CR, LF, NUL, over 100 characters, or "".

    An empty type is refused because the standard makes a `message` of it, which is then not what was published.
    """
    if value == "":
        raise InvalidEvent(f"an event's type is not empty: leave it out for {DEFAULT_TYPE!r}")
    return _validate_field("type", value, MAX_TYPE)


def validate_key(value: object) -> str:
    """Return an idempotency key: text of 1 to 200 characters. Raises `InvalidEvent`."""
    if value == "":
        raise InvalidEvent("an idempotency key is not empty: leave it out to publish without one")
    return _validate_field("key", value, MAX_KEY)


def validate_text(value: str, field: str = "data") -> str:
    """Return `value` if UTF-8 can carry it. Raises `InvalidEvent` for a lone surrogate."""
    # Nearly all text is ASCII, which CPython knows without looking.
    if not value.isascii() and (found := _SURROGATE.search(value)):
        raise InvalidEvent(
            f"an event's {field} is not valid Unicode: a lone surrogate {shown(found[0])} at {found.start()}. "
            "Decode it with errors='replace' first."
        )
    return value


def escape_json(text: str) -> str:
    """
    JSON with U+0085, U+2028 and U+2029 escaped.

    JSON allows the three inside a string, where they are the only line ends it does not escape by itself; a client
    that cuts lines with `str.splitlines` would cut there.
    """
    if text.isascii():
        return text
    return text.replace("\x85", "\\u0085").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


@dataclass(frozen=True, slots=True, order=True)
class Cursor:
    """A place in one life of a log: what a client gets as `id` and sends back as `Last-Event-ID`."""

    epoch: str
    position: int

    def __str__(self) -> str:
        return f"{self.epoch}-{self.position}"

    @classmethod
    def parse(cls, value: str) -> Cursor | None:
        """The cursor that `value` spells, or None: another server's id, garbage, or more than 128 bytes of anything."""
        if len(value) > MAX_CURSOR or not (found := _CURSOR.fullmatch(value)):
            return None
        return cls(found[1], int(found[2]))


@dataclass(frozen=True, slots=True)
class ServerSentEvent:
    """
    One event of a stream, to be written as bytes.

    `data` is text (None: no `data:` line, and then a client dispatches nothing), `id` and `event` are text without CR,
    LF or NUL, `retry` is in milliseconds. Raises `InvalidEvent` when made of anything else.
    """

    data: str | None
    event: str = DEFAULT_TYPE
    id: str | None = None
    retry: int | None = None

    def __post_init__(self) -> None:
        if self.data is not None:
            if not isinstance(self.data, str):
                raise InvalidEvent(
                    f"data is text, not {type(self.data).__name__}: {shown(self.data)}. Encode it as JSON first."
                )
            validate_text(self.data)
        validate_type(self.event)
        if self.id is not None:
            _validate_field("id", self.id, MAX_CURSOR)
        if self.retry is not None and (type(self.retry) is not int or self.retry < 0):
            raise InvalidEvent(f"retry is a whole number of milliseconds from 0 on, not {shown(self.retry)}")

    def encode(self) -> bytes:
        """The event as UTF-8, with the blank line that ends it."""
        return encode(self.data, event=self.event, id=self.id, retry=self.retry)


def encode(
    data: str | None, *, event: str = DEFAULT_TYPE, id: str | None = None, retry: int | None = None
) -> bytes:  # `id`: the name of the field
    """`ServerSentEvent(…).encode()` for values that are known to be good: the hub's hot path."""
    lines = []
    if id is not None:
        lines.append(f"id: {id}")
    if event != DEFAULT_TYPE:
        lines.append(f"event: {event}")
    if retry is not None:
        lines.append(f"retry: {retry}")
    if data is not None:
        if "\n" in data or "\r" in data:
            lines.extend(f"data: {line}" for line in _LINE_END.split(data))
        else:
            lines.append(f"data: {data}")
    lines.append("\n")
    return "\n".join(lines).encode()


def encode_envelope(data: str, *, is_json: bool, channel: str, event: str, id: str) -> bytes:
    """
    An event whose data says where it comes from: `{"channel", "event", "data"}`.

    It is a `message` whatever the event's type, so that one `onmessage` gets the events of every channel.
    """
    value = data if is_json else escape_json(json.dumps(data, ensure_ascii=False))
    name = escape_json(json.dumps(event, ensure_ascii=False))
    return encode(f'{{"channel":"{channel}","event":{name},"data":{value}}}', id=id)


def control(event: str, payload: dict[str, object]) -> bytes:
    """A control event: about the stream, not of the log, and therefore without an id."""
    return encode(json.dumps(payload), event=event)


def prelude(retry: int) -> bytes:
    """
    What a stream starts with, so that `onopen` fires at once: when to come back, and a comment.

    `retry` is in milliseconds. No blank line follows (see the module's docstring): both lines belong to the block of
    whatever event comes first.
    """
    return f"retry: {retry}\n: stream\n".encode()


def random_retry(bounds: tuple[int, int]) -> int:
    """A number of milliseconds between the bounds, drawn anew for each stream so that clients come back spread out."""
    return random.randint(*bounds)  # noqa: S311 - spreads load, protects nothing

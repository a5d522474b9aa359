"""
Bodies of requests to publish: which are taken, and how large they may be.

What the headers say of a body is judged by one rule in two places: before Django reads it (`events.admission`), and in
the view (`events.api`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from django.utils.http import parse_header_parameters

from . import wire
from .conf import settings

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    View = TypeVar("View", bound=Callable[..., object])

#: Bytes that JSON makes of one at the most: six for a control character.
WORST_ESCAPING = 6
#: Bytes for what is around the data: the names of the members, an event's type and its key, however they are escaped.
AROUND_DATA = 4096

#: The attribute of a view whose bodies end at `max_bytes`.
_BOUNDED = "_events_bounded"


class RefusedError(Exception):
    """A request that cannot be answered as it is: the status, what is wrong, and with 422 which part of it."""

    def __init__(
        self, status: int, reason: str, *, field: str | None = None, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(reason)
        self.status = status
        self.reason = reason
        self.field = field
        self.headers = headers or {}


def bounded(view: View) -> View:
    """Mark a view: bodies sent to it are not read beyond `max_bytes`, and not at all where `is_json` refuses them."""
    setattr(view, _BOUNDED, True)
    return view


def is_bounded(view: object) -> bool:
    """Whether the view, or what is wrapped in it, was marked."""
    return getattr(view, _BOUNDED, False)


def max_bytes() -> int:
    """The most bytes of a body: an event of `MAX_EVENT_BYTES` has room in it, whatever its characters."""
    return WORST_ESCAPING * settings.MAX_EVENT_BYTES + AROUND_DATA


def too_large() -> RefusedError:
    """What is said of a body of more than `max_bytes`."""
    return RefusedError(
        413,
        f"The body has more than {max_bytes()} bytes, which is what an event of EVENTS['MAX_EVENT_BYTES'] = "
        f"{settings.MAX_EVENT_BYTES} takes at the most: publish where it can be fetched instead.",
    )


def is_json(headers: Mapping[str, str]) -> bool:
    """
    Whether the body that these headers announce is JSON; it is text if not.

    The names in `headers` are in lower case, or their case does not count. Raises `RefusedError` with 400, 413 or 415
    where they already say that the body cannot be taken.
    """
    found = _names_json(headers.get("content-type", ""))
    encoding = headers.get("content-encoding", "")
    if encoding.strip().lower() not in ("", "identity"):
        raise RefusedError(
            415,
            f"Content-Encoding {wire.shown(encoding)} is not possible: send the body as it is.",
            headers={"Accept-Encoding": "identity"},
        )
    length = headers.get("content-length", "")
    if length:
        if not (length.isascii() and length.isdigit()):
            raise RefusedError(400, f"Content-Length is a number of bytes, not {wire.shown(length)}.")
        # Python reads no number of thousands of digits.
        if len(length) > 20 or int(length) > max_bytes():
            raise too_large()
    return found


def _names_json(content_type: str) -> bool:
    try:
        kind, parameters = parse_header_parameters(content_type)
    except ValueError:
        kind, parameters = "?", {}
    found = kind == "application/json" or kind.endswith("+json")
    if kind and not found and not kind.startswith("text/"):
        raise _unsupported(
            f"Content-Type {wire.shown(content_type)} cannot be published: send JSON as application/json, "
            "or the text itself as text/plain. With curl: -H 'Content-Type: text/plain'"
        )
    if (charset := parameters.get("charset", "utf-8")).lower() not in ("utf-8", "utf8", "us-ascii"):
        raise _unsupported(f"The charset {wire.shown(charset)} is not possible: send UTF-8.")
    return found


def _unsupported(reason: str) -> RefusedError:
    return RefusedError(415, reason, headers={"Accept": "application/json, text/plain"})

"""What every peer publishes: 110 bytes of text that carry the time they were made."""

from __future__ import annotations

import re

SIZE = 110
# No line break in it, so that counting it per read cannot miss one that a chunk boundary cuts at a line's end.
MARK = b'"bench":'
_TIME = re.compile(rb'"bench":([0-9]+\.[0-9]+)')


def make(made: float, number: int, size: int = SIZE) -> str:
    """The payload of event ``number``, made at ``made`` (seconds since 1970)."""
    text = f'{{"bench":{made:.6f},"number":{number:09d},"pad":"'
    return text + "x" * (size - len(text) - 2) + '"}'


def times(data: bytes | bytearray) -> list[float]:
    """When the events in ``data`` were made."""
    return [float(found) for found in _TIME.findall(data)]

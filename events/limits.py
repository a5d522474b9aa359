"""
What a process grants its streams, and what was refused: counted, logged with the channel, and told to the site.

A client that is put off gets a stream that ends at once and a long `retry:`, never a 503: a browser's EventSource that
sees any status but 200 never comes back.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import Counter
from typing import TYPE_CHECKING

from . import signals, wire
from .conf import settings

if TYPE_CHECKING:
    from collections.abc import Iterable

logger = logging.getLogger("events.limits")

# What a limit is called in logs, in `counts` and in the signal.

#: `MAX_STREAMS`: a client was put off.
STREAMS = "MAX_STREAMS"
#: `MAX_STREAMS_PER_USER`: a client was put off.
STREAMS_PER_USER = "MAX_STREAMS_PER_USER"
#: `SLOW_CLIENT_TIMEOUT`: a client took nothing for so long, and was closed.
SLOW_CLIENT = "SLOW_CLIENT_TIMEOUT"
#: `MAX_STREAM_AGE`: a stream ended, and its client comes back.
STREAM_AGE = "MAX_STREAM_AGE"
#: `RING_EVENTS` or `RING_BYTES`: a channel's ring is full. Streams behind it read from the log.
RING = "RING"

#: Seconds between two log lines about one limit of one channel: 10,000 clients that are put off are not 10,000 lines.
QUIET = 10.0

#: How often each limit was reached in this process: `(limit, channel)` to a number.
counts: Counter[tuple[str, str]] = Counter()

_said_at: dict[tuple[str, str], float] = {}


class OpenStreams:
    """How many streams this process has open, in all and of each user."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.total = 0
        self.by_user: Counter[str] = Counter()

    def admit(self, user: str | None, max_streams: int | None, max_per_user: int | None) -> str | None:
        """Count in a stream of `user`, who is None where not signed in. Returns the limit that forbids it, or None."""
        with self.lock:
            if max_streams is not None and self.total >= max_streams:
                return STREAMS
            if user is not None and max_per_user is not None and self.by_user[user] >= max_per_user:
                return STREAMS_PER_USER
            self.total += 1
            if user is not None:
                self.by_user[user] += 1
        return None

    def leave(self, user: str | None) -> None:
        """Count out a stream that was admitted."""
        with self.lock:
            if not self.total:
                # A stream of a parent process, which ends here as well.
                return
            self.total -= 1
            if user is not None:
                self.by_user[user] -= 1
                if not self.by_user[user]:
                    del self.by_user[user]

    def after_fork(self) -> None:
        """No stream lives on in a child, and a lock that another thread held would be held for ever."""
        self.__init__()  # type: ignore[misc]


open_streams = OpenStreams()
os.register_at_fork(after_in_child=open_streams.after_fork)


def reached(limit: str, channels: Iterable[str], *, level: int = logging.WARNING, detail: str = "") -> None:
    """Count that `limit` was reached by a stream of `channels`, log it, and send `signals.limit_reached`."""
    names = tuple(channels)
    label = ",".join(names)
    now = time.monotonic()
    with open_streams.lock:
        for name in names:
            counts[limit, name] += 1
        if is_said := now - _said_at.get((limit, label), -QUIET) >= QUIET:
            if len(_said_at) > 1000:
                _said_at.clear()
            _said_at[limit, label] = now
    if is_said:
        logger.log(level, "limit reached: limit=%s channels=%s%s", limit, label, detail and f" {detail}")
    for receiver, answer in signals.limit_reached.send_robust(sender=None, limit=limit, channels=names):
        if isinstance(answer, Exception):
            logger.error("a receiver of limit_reached failed: %r", receiver, exc_info=answer)


def put_off() -> bytes:
    """The first and last bytes for a client that is put off: come back, but not soon."""
    _, most = settings.RETRY
    return wire.prelude(wire.random_retry((most, 4 * most)))

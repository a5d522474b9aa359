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
from ipaddress import IPv6Address, ip_address, ip_network
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
#: `MAX_STREAMS_PER_ADDRESS`: a client was put off.
STREAMS_PER_ADDRESS = "MAX_STREAMS_PER_ADDRESS"
#: `SLOW_CLIENT_TIMEOUT`: a client took nothing for so long, and was closed.
SLOW_CLIENT = "SLOW_CLIENT_TIMEOUT"
#: `MAX_STREAM_AGE`: a stream ended, and its client comes back.
STREAM_AGE = "MAX_STREAM_AGE"
#: `RING_EVENTS` or `RING_BYTES`: a channel's ring is full. Streams behind it read from the log.
RING = "RING"

#: Seconds between two log lines about one limit: 10,000 clients that are put off are not 10,000 lines.
QUIET = 10.0
#: Pairs of a limit and a channel that `counts` tells apart. Clients choose names under a prefix, without end.
MAX_COUNTED = 1000
#: In the place of a channel's name in `counts`: all that came when it was full.
OTHERS = "(others)"
#: Bits of an IPv6 address that count. The rest is its customer's own, who has 2^64 of them.
IPV6_PREFIX = 64
#: Characters that are kept of an address which is none. An IPv6 address has at most 45.
MAX_ADDRESS = 64

#: How often each limit was reached in this process: `(limit, channel)` to a number. The first `MAX_COUNTED` pairs have
#: numbers of their own, and what comes after them is counted under `(limit, OTHERS)`.
counts: Counter[tuple[str, str]] = Counter()

#: Limit to when its last log line was, and how often it was reached since.
_said_at: dict[str, tuple[float, int]] = {}


def address_of(remote_addr: str | None) -> str | None:
    """
    Whom an address (`REMOTE_ADDR`) stands for: itself, or in IPv6 its network of 64 bits, which one customer has.

    None for no address, as on a Unix socket: nobody is counted for it. Text that is no address, which a server may have
    taken from a header, stands for itself, cut at `MAX_ADDRESS` characters.
    """
    if not remote_addr:
        return None
    try:
        address = ip_address(remote_addr)
    except ValueError:
        return remote_addr[:MAX_ADDRESS]
    if not isinstance(address, IPv6Address):
        return str(address)
    if address.ipv4_mapped is not None:
        # How a socket that takes both kinds shows an IPv4 client.
        return str(address.ipv4_mapped)
    return str(ip_network((int(address), IPV6_PREFIX), strict=False))


def who(user: str | None, address: str | None) -> str:
    """Whom a stream counts for, as a log line says it; "" where it counts for nobody."""
    counted_for = (("user", user), ("address", address))
    return " ".join(f"{kind}={wire.shown(key)}" for kind, key in counted_for if key is not None)


class OpenStreams:
    """How many streams this process has open, in all, of each user and of each address."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.total = 0
        self.by_user: Counter[str] = Counter()
        self.by_address: Counter[str] = Counter()

    def admit(
        self,
        user: str | None,
        max_streams: int | None,
        max_per_user: int | None,
        address: str | None = None,
        max_per_address: int | None = None,
    ) -> str | None:
        """
        Count in a stream of `user`, who is None where not signed in, from `address` (`address_of`).

        Returns the limit that forbids it, or None.
        """
        with self.lock:
            if max_streams is not None and self.total >= max_streams:
                return STREAMS
            if user is not None and max_per_user is not None and self.by_user[user] >= max_per_user:
                return STREAMS_PER_USER
            if address is not None and max_per_address is not None and self.by_address[address] >= max_per_address:
                return STREAMS_PER_ADDRESS
            self.total += 1
            if user is not None:
                self.by_user[user] += 1
            if address is not None:
                self.by_address[address] += 1
        return None

    def leave(self, user: str | None, address: str | None = None) -> None:
        """Count out a stream that was admitted."""
        with self.lock:
            if not self.total:
                # A stream of a parent process, which ends here as well.
                return
            self.total -= 1
            if user is not None:
                _count_out(self.by_user, user)
            if address is not None:
                _count_out(self.by_address, address)

    def after_fork(self) -> None:
        """No stream lives on in a child, and a lock that another thread held would be held for ever."""
        self.__init__()  # type: ignore[misc]


open_streams = OpenStreams()
os.register_at_fork(after_in_child=open_streams.after_fork)


def _count_out(counted: Counter[str], key: str) -> None:
    """One less. Who has none left is not remembered."""
    counted[key] -= 1
    if not counted[key]:
        del counted[key]


def reached(limit: str, channels: Iterable[str], *, level: int = logging.WARNING, detail: str = "") -> None:
    """
    Count that `limit` was reached by a stream of `channels`, log it, and send `signals.limit_reached`.

    One line in `QUIET` seconds, whoever comes and whatever channels they name. `detail` says more of the one that it is
    about, as `who` does: it goes into the line as it is. `unsaid` are those that had no line since the last one.
    """
    names = tuple(channels)
    now = time.monotonic()
    with open_streams.lock:
        for name in names:
            key = (limit, name)
            counts[key if key in counts or len(counts) < MAX_COUNTED else (limit, OTHERS)] += 1
        at, unsaid = _said_at.get(limit, (-QUIET, 0))
        is_said = now - at >= QUIET
        _said_at[limit] = (now, 0) if is_said else (at, unsaid + 1)
    if is_said:
        more = (f" {detail}" if detail else "") + (f" unsaid={unsaid}" if unsaid else "")
        logger.log(level, "limit reached: limit=%s channels=%s%s", limit, ",".join(names), more)
    for receiver, answer in signals.limit_reached.send_robust(sender=None, limit=limit, channels=names):
        if isinstance(answer, Exception):
            logger.error("a receiver of limit_reached failed: %r", receiver, exc_info=answer)


def put_off() -> bytes:
    """The first and last bytes for a client that is put off: come back, but not soon."""
    _, most = settings.RETRY
    return wire.prelude(wire.random_retry((most, 4 * most)))

"""The demo's own source of interval messages. The `events` app finds this module by its name."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, NamedTuple

import psutil

from events import source

if TYPE_CHECKING:
    from events.models import Channel

#: Seconds between the two looks that the first message is made of.
FIRST_LOOK = 0.1
LOOPBACK = ("lo", "lo0", "Loopback Pseudo-Interface 1")


class Reading(NamedTuple):
    """The machine's counters at one moment: seconds and bytes since some start that does not matter."""

    at: float
    busy: float
    total: float
    received: int
    sent: int


def read() -> Reading:
    """The counters now."""
    times = psutil.cpu_times()
    # On Linux a guest's time is also counted as user time.
    total = sum(times) - getattr(times, "guest", 0) - getattr(times, "guest_nice", 0)
    idle = times.idle + getattr(times, "iowait", 0)
    # What a machine says to itself is not network traffic.
    interfaces = [counters for name, counters in psutil.net_io_counters(pernic=True).items() if name not in LOOPBACK]
    return Reading(
        at=time.monotonic(),
        busy=total - idle,
        total=total,
        received=sum(counters.bytes_recv for counters in interfaces),
        sent=sum(counters.bytes_sent for counters in interfaces),
    )


def figures(before: Reading, now: Reading) -> dict[str, float]:
    """
    What happened between two readings: `load` in percent of all cores, `received` and `sent` in kB/s.

    Counters may start again from zero (an interface that went away): then less than nothing happened, which is nothing.
    """
    seconds = max(now.at - before.at, 0.001)
    total = now.total - before.total
    return {
        "load": round(min(max(100 * (now.busy - before.busy) / total, 0), 100), 1) if total > 0 else 0.0,
        "received": round(max(now.received - before.received, 0) / seconds / 1000, 1),
        "sent": round(max(now.sent - before.sent, 0) / seconds / 1000, 1),
    }


# psutil.cpu_percent() would remember the last reading for each thread, and ticks may come from any.
_lock = threading.Lock()
_last: Reading | None = None


@source("machine")
def machine(channel: Channel) -> dict[str, float]:
    """The host's load and memory in percent, and its network traffic in kB/s, since the last message made here."""
    global _last  # noqa: PLW0603 - one reading per process is what is meant
    with _lock:
        before = _last
        # The first message, or the first after nobody watched for a while: an average over that while would tell
        # nothing about now, so look twice.
        if before is None or time.monotonic() - before.at > 10 * channel.interval:
            before = read()
            time.sleep(FIRST_LOOK)
        _last = read()
        result = figures(before, _last)
    return {
        "load": result["load"],
        "memory": psutil.virtual_memory().percent,
        "received": result["received"],
        "sent": result["sent"],
    }

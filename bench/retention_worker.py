"""The two sides of a trim: ``python -m bench.retention_worker publish <rate>`` and ``… prune``.

``publish`` publishes until it gets SIGTERM and prints JSON: for each call the moment it began, in seconds since 1970,
and how long it took. ``prune`` runs `prune_events` and prints when it began and when it was done.
"""

from __future__ import annotations

import json
import signal
import sys
import time
from importlib import import_module
from typing import TYPE_CHECKING

import django
from django.core.management import call_command

from bench import payload

if TYPE_CHECKING:
    from types import FrameType

stopping = False


def _stop(signum: int, frame: FrameType | None) -> None:
    global stopping  # noqa: PLW0603 - a signal handler has nowhere else to put it
    stopping = True


def publish(rate: float) -> list[tuple[float, float]]:
    """Publish at a steady rate; a call that comes late is not made up for."""
    events = import_module("events")
    for number in range(50):
        events.publish("bench", payload.make(time.time(), number))
    print("ready", flush=True)
    calls: list[tuple[float, float]] = []
    while not stopping:
        start, clock = time.time(), time.perf_counter()
        events.publish("bench", payload.make(start, len(calls)))
        took = time.perf_counter() - clock
        calls.append((start, took))
        time.sleep(max(0.0, 1 / rate - took))
    return calls


def prune() -> tuple[float, float]:
    """Remove what is not kept."""
    start = time.time()
    call_command("prune_events", stdout=sys.stderr)
    return start, time.time()


def main(what: str, rate: float) -> None:
    """Do one or the other."""
    signal.signal(signal.SIGTERM, _stop)
    django.setup()
    print(json.dumps(publish(rate) if what == "publish" else prune()))


if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]) if len(sys.argv) > 2 else 0.0)

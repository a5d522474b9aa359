"""Publish at random moments: ``python -m bench.latency_publisher <who> <count> <rate> <seed>``.

``who`` is "ours", or how channels_redis' `group_send` is called: "awaited" on a loop that runs all the time, or through
"async_to_sync", as from a view that is not async. Prints JSON: how long each call took, in seconds.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
import time
from importlib import import_module
from typing import TYPE_CHECKING, Any

import django

from bench import payload

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


def pauses(count: int, rate: float, seed: int) -> Iterator[float]:
    """Seconds between two events: uniform around the mean, random against any polling, and never a burst."""
    moments = random.Random(seed)
    for _ in range(count):
        yield moments.uniform(0.2, 1.8) / rate


def one_by_one(publish: Callable[[str], Any], count: int, rate: float, seed: int) -> list[float]:
    """Call ``publish`` with payloads that carry the time just before the call."""
    took = []
    for number, pause in enumerate(pauses(count, rate, seed)):
        time.sleep(pause)
        start = time.time()
        publish(payload.make(start, number))
        took.append(time.time() - start)
    return took


async def awaited(count: int, rate: float, seed: int) -> list[float]:
    """The same on a running loop."""
    app = import_module("bench.apps.channels_app")
    took = []
    for number, pause in enumerate(pauses(count, rate, seed)):
        await asyncio.sleep(pause)
        start = time.time()
        await app.layer.group_send(app.GROUP, {"type": "bench.message", "text": payload.make(start, number)})
        took.append(time.time() - start)
    return took


def main(who: str, count: int, rate: float, seed: int) -> None:
    """Publish ``count`` events, ``rate`` a second on average."""
    if who == "awaited":
        took = asyncio.run(awaited(count, rate, seed))
    elif who == "async_to_sync":
        app = import_module("bench.apps.channels_app")
        send = import_module("asgiref.sync").async_to_sync(app.layer.group_send)
        took = one_by_one(lambda text: send(app.GROUP, {"type": "bench.message", "text": text}), count, rate, seed)
    else:
        django.setup()
        events = import_module("events")
        took = one_by_one(lambda text: events.publish("bench", text), count, rate, seed)
    print(json.dumps(took))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]), int(sys.argv[4]))

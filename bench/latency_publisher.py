"""Publish at random moments: ``python -m bench.latency_publisher <count> <rate> <seed>``.

Prints JSON: how long each ``publish()`` took, in seconds.
"""

from __future__ import annotations

import json
import random
import sys
import time
from importlib import import_module

import django

from bench import payload


def main(count: int, rate: float, seed: int) -> None:
    """Publish ``count`` events, ``rate`` a second on average, each with the time just before its call."""
    django.setup()
    events = import_module("events")
    moments = random.Random(seed)
    took = []
    for number in range(count):
        # Uniform around the mean: random against the server's look at the database, and never a burst.
        time.sleep(moments.uniform(0.2, 1.8) / rate)
        start = time.time()
        events.publish("bench", payload.make(start, number))
        took.append(time.time() - start)
    print(json.dumps(took))


if __name__ == "__main__":
    main(int(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3]))

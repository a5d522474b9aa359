"""Publish at a steady rate: ``python -m bench.page_publisher <count> <rate> <first>``.

Events of the channel "bench" as a site publishes them, one call each, or ten a call where the rate is more than one
call after the other could reach. ``first`` is the number of the first. Prints JSON: the seconds it took.
"""

from __future__ import annotations

import json
import sys
import time

import django

#: Events a second that one process publishes one by one, on a small machine and with time left.
ONE_BY_ONE = 1_500
TOGETHER = 10


def data(number: int) -> dict[str, object]:
    """What is published: two numbers, which the live page draws charts of, and a text."""
    return {"number": number, "level": number * 7 % 101, "text": "x" * 60}


def main(count: int, rate: float, first: int) -> None:
    """Publish ``count`` events, each at its moment; late ones at once, so that the rate holds over all."""
    django.setup()
    from events import publish, publish_many  # noqa: PLC0415 - Django is ready only now

    step = 1 if rate <= ONE_BY_ONE else TOGETHER
    start = time.monotonic()
    for number in range(0, count, step):
        time.sleep(max(0.0, start + number / rate - time.monotonic()))
        if step == 1:
            publish("bench", data(first + number))
        else:
            publish_many([("bench", data(first + each)) for each in range(number, min(number + step, count))])
    print(json.dumps(time.monotonic() - start))


if __name__ == "__main__":
    main(int(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3]))

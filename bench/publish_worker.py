"""Publish and time it, in a process of its own: ``python -m bench.publish_worker <peer> <batch> <count>``.

Prints JSON: events per second of wall time, CPU microseconds of this process per event, and how many rows the
database holds afterwards, counted over a connection of its own.
"""

from __future__ import annotations

import json
import os
import sqlite3
import sys
import time
from importlib import import_module
from typing import TYPE_CHECKING

import django

from bench import payload

if TYPE_CHECKING:
    from collections.abc import Callable

WARM_UP = 200


def publisher(peer: str, batch: int) -> Callable[[list[str]], None]:
    """The function that publishes one batch of payloads."""
    if peer == "eventstream":
        send_event = import_module("django_eventstream").send_event

        def send_all(texts: list[str]) -> None:
            for text in texts:
                send_event("bench", "message", text, json_encode=False)

        return send_all
    events = import_module("events")
    if batch == 1:

        def publish_one(texts: list[str]) -> None:
            events.publish("bench", texts[0])

        return publish_one

    def publish_batch(texts: list[str]) -> None:
        events.publish_many([("bench", text) for text in texts])

    return publish_batch


def rows(peer: str) -> int:
    """How many events are in the table, as another connection sees it."""
    table = "django_eventstream_event" if peer == "eventstream" else "events_event"
    # django-eventstream's first event of a channel brings an empty one of number 0 with it.
    where = " where eid > 0" if peer == "eventstream" else ""
    connection = sqlite3.connect(os.environ["BENCH_DB"])
    try:
        return int(connection.execute(f"select count(*) from {table}{where}").fetchone()[0])
    finally:
        connection.close()


def main(peer: str, batch: int, count: int) -> None:
    """Warm up, publish ``count`` events in batches, print the figures."""
    django.setup()
    publish = publisher(peer, batch)
    for start in range(0, WARM_UP, batch):
        publish([payload.make(time.time(), start + offset) for offset in range(batch)])
    before = rows(peer)
    wall, cpu = time.perf_counter(), time.process_time()
    for start in range(0, count, batch):
        publish([payload.make(time.time(), start + offset) for offset in range(batch)])
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    figures = {"rate": count / wall, "cpu": cpu / count * 1e6, "rows": rows(peer) - before, "seconds": wall}
    print(json.dumps(figures))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))

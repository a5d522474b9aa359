"""Publish for some seconds: ``python -m bench.engine_publish_worker <batch> <seconds> <processes>``.

All processes begin at one moment, each with a connection that is open and warm. Prints JSON: events per second of all
together, the publishers' and the engine's CPU microseconds per event, and how far the log's head moved meanwhile.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import sys
import time
from importlib import import_module
from typing import TYPE_CHECKING, Any

import django
import psutil

from bench import payload

if TYPE_CHECKING:
    from multiprocessing.queues import SimpleQueue
    from multiprocessing.synchronize import Barrier

WARM_UP = 200
#: Seconds for all processes to be ready.
PATIENCE = 120.0


def engine_cpu() -> float:
    """Seconds that the engine's server has used so far; 0 where there is none."""
    if "BENCH_ENGINE_PID" not in os.environ:
        return 0.0
    main = psutil.Process(int(os.environ["BENCH_ENGINE_PID"]))
    total = 0.0
    for process in (main, *main.children(recursive=True)):
        with contextlib.suppress(psutil.NoSuchProcess):
            total += sum(process.cpu_times()[:4])
    return total


def publish_for(seconds: float, batch: int, *, least: int = 0) -> tuple[int, float]:
    """Publish, call after call, at least so many events. Returns how many, and the moment after the last call."""
    events = import_module("events")
    done, end = 0, time.monotonic() + seconds
    while (now := time.monotonic()) < end or done < least:
        if batch == 1:
            events.publish("bench", payload.make(time.time(), done))
        else:
            made = time.time()
            events.publish_many([("bench", payload.make(made, done + index)) for index in range(batch)])
        done += batch
    return done, now


def one_process(batch: int, seconds: float, ready: Barrier, results: SimpleQueue[Any]) -> None:
    """Warm up, wait for the others, publish, tell."""
    try:
        for _ in range(WARM_UP if batch == 1 else 2):
            publish_for(0.0, batch, least=batch)
        # Once for the parent's readings, once to begin.
        ready.wait(PATIENCE)
        ready.wait(PATIENCE)
        cpu = time.process_time()
        done, end = publish_for(seconds, batch)
        results.put((done, end, time.process_time() - cpu))
    except BaseException:
        # Whoever waits for this process shall not wait for ever.
        ready.abort()
        results.put(None)
        raise


def main(batch: int, seconds: float, processes: int) -> None:
    """Start the processes, let them begin together, print the figures."""
    django.setup()
    context = multiprocessing.get_context("fork")
    ready, results = context.Barrier(processes + 1), context.SimpleQueue()
    children = [
        context.Process(target=one_process, args=(batch, seconds, ready, results), daemon=True)
        for _ in range(processes)
    ]
    for child in children:
        child.start()
    ready.wait(PATIENCE)
    # Made only now: a backend that was there before the fork would be shared with the children.
    log = import_module("events.registry").event_backends["default"]
    head, cpu, start = log.head().position, engine_cpu(), time.monotonic()
    ready.wait(PATIENCE)
    found = [results.get() for _ in children]
    cpu = engine_cpu() - cpu
    if None in found:
        sys.exit("a publishing process failed; its error is above")
    for child in children:
        child.join()
    count = sum(done for done, _, _ in found)
    figures = {
        "rate": count / (max(end for _, end, _ in found) - start),
        "cpu": sum(used for _, _, used in found) / count * 1e6,
        "engine_cpu": cpu / count * 1e6,
        "count": count,
        "moved": log.head().position - head,
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main(int(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3]))

"""How long a client that has missed 10,000 events waits for them."""

from __future__ import annotations

import re
import socket
import time
from typing import TYPE_CHECKING

from bench import payload
from bench.engines import ALL, started
from bench.peers import OURS, by_name
from bench.process import BenchError, run_json
from bench.report import Table
from bench.servers import uvicorn
from bench.stats import median, number, spread

if TYPE_CHECKING:
    from bench.engines import Log
    from bench.options import Options

MISSED = 10_000
PATIENCE = 60.0
_NUMBER = re.compile(rb'"number":([0-9]{9})')


def request(
    port: int, path: str, *, until: int, last_event_id: str, mark: bytes = payload.MARK
) -> tuple[float, float, bytes]:
    """
    Open a stream and read until ``until`` marks and the end of the last one's event have come.

    Returns the seconds from before the connection is made to the first mark and to the last byte, and all bytes.
    """
    head = (
        f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nAccept: text/event-stream\r\n"
        f"Last-Event-ID: {last_event_id}\r\n\r\n"
    )
    start = time.perf_counter()
    with socket.create_connection(("127.0.0.1", port), PATIENCE) as client:
        client.sendall(head.encode())
        data, seen, first = bytearray(), 0, 0.0
        while not (seen >= until and data.rfind(b"\n\n") > data.rfind(mark)):
            chunk = client.recv(1 << 20)
            if not chunk:
                raise BenchError(f"the stream ended after {seen} of {until} events")
            # A mark that two reads share begins in what was kept of the first.
            before = max(0, len(data) - len(mark) + 1)
            data += chunk
            seen += data.count(mark, before)
            if seen and not first:
                first = time.perf_counter() - start
        return first, time.perf_counter() - start, bytes(data)


def one_run(log: Log, cursor: str, missed: int) -> tuple[float, float]:
    """A fresh server that has answered before, but has nothing of the log in memory. Returns milliseconds."""
    peer = by_name(OURS)
    with uvicorn(peer.app, env=log.env) as (_, port):
        # What is loaded at the first request only is loaded by this one.
        request(port, "/events/stream/?channel=warm", until=1, last_event_id="unknown", mark=b"stream-reset")
        first, last, data = request(port, peer.stream, until=missed, last_event_id=cursor)
    # Chunks of the transfer may cut a number in two: those few are left out, the others must stand in order.
    numbers = [int(found) for found in _NUMBER.findall(data)]
    if len(numbers) < missed * 0.9 or numbers != sorted(set(numbers)) or b"stream-reset" in data:
        raise BenchError(f"not what was missed: {len(numbers)} events, {data[:300]!r}")
    return first * 1000, last * 1000


def run(options: Options) -> list[Table]:
    """Measure every engine, on a log that is filled once."""
    missed = MISSED
    table = Table(
        title=f"A client that missed {missed:,} events comes back",
        columns=("engine", "first event ms", "all ms", "events/s", "target of all"),
        note="From before the connection is made to the read that has the first event, and to the one that ends the "
        "last.",
    )
    with started(ALL, options) as engines:
        for engine in engines.values():
            with engine.fresh() as log:
                cursor = run_json("bench.fill", "publish", str(missed), env=log.env, core="any")
                runs = [one_run(log, cursor, missed) for _ in range(options.runs)]
            times = [last for _, last in runs]
            print(f"  {engine.name}: {spread(times)} ms", flush=True)
            table.rows.append(
                (
                    engine.name,
                    spread([first for first, _ in runs]),
                    spread(times),
                    number(missed / median(times) * 1000),
                    "at most 500",
                )
            )
    return [table]

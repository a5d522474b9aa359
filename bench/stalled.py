"""Whether a client that stops reading delays the others."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from bench import machine
from bench.contenders import Contender, Served, find, rounds
from bench.load import Caller, Stalled, Streams
from bench.observed import Server, warm_up, window
from bench.peers import DIRECT, NCHAN, OURS
from bench.report import Figure, Table
from bench.servers import DAPHNE, NGINX, UVICORN
from bench.stats import median, number, percentile, spread

if TYPE_CHECKING:
    from bench.options import Options

#: Pairs of windows in one server's life.
PAIRS = 2
#: Before each window, so that what the kernel and the server hold for the client that stalls is full: 400 KiB.
FILL_EVENTS = 100
FILL_BYTES = 4096
#: A second: slow enough for all to take them.
FILL_RATE = 40.0


@dataclass(kw_only=True)
class Run:
    """Latencies in ms beside nobody who stalls and beside one; what waited for that one in the kernel, in KiB."""

    without: list[float] = field(default_factory=list)
    beside: list[float] = field(default_factory=list)
    waiting: list[float] = field(default_factory=list)
    moved: bool = False

    @property
    def ratio(self) -> float:
        """p99 beside the stalled client, of p99 without."""
        return percentile(self.beside, 0.99) / percentile(self.without, 0.99)


async def _one_window(
    contender: Contender, served: Served, streams: Streams, caller: Caller, options: Options, *, stalls: bool
) -> tuple[list[float], tuple[int | None, int | None]]:
    """One window after filling. Returns latencies, and what waited for the stalled client before and after."""
    count = options.crowd
    client = Stalled(served.port, contender.peer.stream) if stalls else None
    if client is not None:
        await asyncio.to_thread(client.open)
    try:
        frames = streams.tally.frames
        published = await caller.publish(FILL_RATE, FILL_EVENTS / FILL_RATE, size=FILL_BYTES)
        await streams.settle(expected=frames + published * count)
        await asyncio.sleep(0.5)
        before = client.waiting() if client else None
        found = await window(
            Server(served.pid), streams, caller, count=count, rate=options.rate_for(count), seconds=options.seconds
        )
        return found.latencies, (before, client.waiting() if client else None)
    finally:
        if client is not None:
            client.close()


async def _measure(contender: Contender, served: Served, options: Options) -> Run:
    count = options.crowd
    caller = Caller(served.port)
    await warm_up(Streams(served.port, contender.peer.stream), caller)
    streams = Streams(served.port, contender.peer.stream)
    await streams.open(count, every=max(1, count // 100))
    run = Run()
    for pair in range(PAIRS):
        # Turn and turn about: what grows with time falls on both.
        for stalls in (False, True) if pair % 2 == 0 else (True, False):
            latencies, (before, after) = await _one_window(contender, served, streams, caller, options, stalls=stalls)
            (run.beside if stalls else run.without).extend(latencies)
            if stalls and before is not None:
                run.waiting.append(before / 1024)
                run.moved = run.moved or after != before
    await streams.close()
    await caller.close()
    return run


def run(options: Options) -> list[Table]:
    """Measure this project and nchan."""
    machine.raise_open_files(options.crowd + 200)

    contenders = find(options, names=(OURS, NCHAN), on=(UVICORN, DAPHNE, NGINX), lanes=(DIRECT,))
    found, failed = rounds(contenders, options, _measure, lambda it: f"p99 {number(it.ratio)} × that without")
    table = Table(
        title=f"One client of {options.crowd + 1:,} stops reading, {options.rate_for(options.crowd):g} events/s",
        columns=(
            "who",
            "server",
            "p99 ms without",
            "p99 ms beside it",
            "ratio",
            "p50 ms without",
            "p50 ms beside it",
            "waits for it in the kernel, KiB",
        ),
        note=f"Windows without and beside it take turns in one server, {PAIRS} of each in a run. Before each, "
        f"{FILL_EVENTS} events of {FILL_BYTES:,} bytes fill what is held for it. 'Moving' in the last column: it was "
        "still taking some." + failed,
    )
    for contender, runs in found.items():
        ratios = [it.ratio for it in runs]
        table.figures[Figure("stalled", contender.name)] = ratios
        waiting = spread([kib for it in runs for kib in it.waiting])
        table.rows.append(
            (
                contender.label,
                contender.server,
                spread([percentile(it.without, 0.99) for it in runs]),
                spread([percentile(it.beside, 0.99) for it in runs]),
                f"{median(ratios):.2f} ({min(ratios):.2f}–{max(ratios):.2f})" if ratios else "–",
                spread([percentile(it.without, 0.5) for it in runs]),
                spread([percentile(it.beside, 0.5) for it in runs]),
                waiting + (", moving" if any(it.moved for it in runs) else ""),
            )
        )
    return [table]

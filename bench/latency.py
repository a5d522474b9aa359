"""How long another process's publish takes to reach a stream."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from bench.load import Streams, run_on_loop
from bench.peers import OURS, by_name, folder
from bench.process import BenchError, run_json, uvicorn
from bench.report import Table
from bench.stats import percentile, spread

if TYPE_CHECKING:
    from bench.options import Options

WARM_UP = 20


async def _measure(port: int, stream: str, env: dict[str, str], options: Options, seed: int) -> list[float]:
    """One stream, one publishing process. Returns seconds from the call to the bytes at the client."""
    count = 60 if options.quick else 300
    streams = Streams(port, stream)
    await streams.open(1, every=1)
    try:
        for number, warm_up in ((WARM_UP, True), (count, False)):
            expected = streams.tally.frames + number
            streams.tally.latencies.clear()

            def publish(number: int = number) -> Any:
                arguments = (str(number), str(options.rate), str(seed))
                return run_json("bench.latency_publisher", *arguments, env=env, core="load")

            await asyncio.to_thread(publish)
            await streams.settle(expected=expected)
            if not warm_up and len(streams.tally.latencies) != number:
                raise BenchError(f"{number} events were published, {len(streams.tally.latencies)} arrived")
        return list(streams.tally.latencies)
    finally:
        await streams.close()


def run(options: Options) -> list[Table]:
    """Measure, and put the percentiles of each run in a table."""
    peer = by_name(OURS)
    table = Table(
        title="From another process's publish() to a stream, SQLite",
        columns=("who", "p50 ms", "p99 ms", "max ms"),
        note="Target: p99 at most 30 ms. The peers have no row: without a broker, what another process publishes "
        "does not reach their streams.",
    )
    if not peer.installed() or not options.wants(OURS):
        return [table]
    runs: list[list[float]] = []
    for turn in range(options.runs):
        with folder() as place:
            env = peer.environment(place)
            peer.prepare(env)
            with uvicorn(peer.app, env=env) as (_, port):
                seed = turn

                async def measure(port: int = port, env: dict[str, str] = env, seed: int = seed) -> list[float]:
                    return await _measure(port, peer.stream, env, options, seed)

                runs.append([seconds * 1000 for seconds in run_on_loop(measure)])
        print(f"  run {turn + 1}: p99 {percentile(runs[-1], 0.99):.1f} ms", flush=True)
    shares = (0.5, 0.99, 1.0)
    table.rows.append((OURS, *(spread([percentile(values, share) for values in runs]) for share in shares)))
    return [table]

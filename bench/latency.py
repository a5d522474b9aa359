"""How long another process's publish takes to reach a stream, on each engine."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING

from bench.engines import ALL, MARIADB, POSTGRESQL, REDIS, SQLITE, Engine, started
from bench.load import Streams, run_on_loop
from bench.peers import CHANNELS, OURS, by_name
from bench.process import BenchError, run_json
from bench.report import Table
from bench.servers import uvicorn
from bench.stats import percentile, spread

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bench.options import Options

WARM_UP = 20


@dataclass(frozen=True, kw_only=True)
class Case:
    """One row. ``layer`` is the class of channels_redis, empty for this project; ``how`` as the publisher knows it."""

    engine: str
    who: str = OURS
    label: str = "publish"
    how: str = "ours"
    layer: str = ""
    target: str = ""


def _channels(layer: str, how: str) -> Case:
    name = layer.rpartition(".")[2]
    return Case(engine=REDIS, who=CHANNELS, label=f"group_send, {how}, {name}", how=how, layer=layer)


CASES = (
    Case(engine=SQLITE, target="at most 30 ms"),
    Case(engine=POSTGRESQL, target="at most 8 ms"),
    Case(engine=MARIADB),
    Case(engine=REDIS, target="at most 5 ms"),
    _channels("channels_redis.core.RedisChannelLayer", "awaited"),
    _channels("channels_redis.core.RedisChannelLayer", "async_to_sync"),
    _channels("channels_redis.pubsub.RedisPubSubChannelLayer", "awaited"),
)


@dataclass(frozen=True, kw_only=True)
class Served:
    """A running server: its process, its port, the path of its stream, and what a publisher has in its environment."""

    pid: int
    port: int
    stream: str
    env: dict[str, str]


@contextlib.contextmanager
def serving(case: Case, engine: Engine) -> Iterator[Served]:
    """Start the server of a case, on a fresh log."""
    with contextlib.ExitStack() as stack:
        if case.layer:
            env = {"BENCH_REDIS_URL": engine.server.url, "BENCH_LAYER": case.layer}
            app, stream = "bench.apps.channels_app:application", "/events"
        else:
            env = stack.enter_context(engine.fresh(kept=1000, trim_interval=30.0)).env
            peer = by_name(OURS)
            app, stream = peer.app, peer.stream
        process, port = stack.enter_context(uvicorn(app, env=env))
        yield Served(pid=process.pid, port=port, stream=stream, env=env)


@dataclass(frozen=True, kw_only=True)
class Run:
    """Milliseconds from each call to the bytes at the client, and how many the calls themselves took."""

    arrived: list[float]
    calls: list[float]


async def _measure(case: Case, served: Served, options: Options, seed: int) -> Run:
    """One stream, one publishing process."""
    count = 60 if options.quick else 300
    streams = Streams(served.port, served.stream)
    await streams.open(1, every=1)
    try:
        arguments = (case.how, str(WARM_UP + count), str(2 * options.rate), str(seed))
        took = await asyncio.to_thread(run_json, "bench.latency_publisher", *arguments, env=served.env, core="load")
        await streams.settle(expected=WARM_UP + count)
        if len(streams.tally.latencies) != WARM_UP + count:
            raise BenchError(f"{WARM_UP + count} events were published, {len(streams.tally.latencies)} arrived")
        return Run(
            arrived=[seconds * 1000 for seconds in streams.tally.latencies[WARM_UP:]],
            calls=[seconds * 1000 for seconds in took[WARM_UP:]],
        )
    finally:
        await streams.close()


def one_run(case: Case, engine: Engine, options: Options, seed: int) -> Run:
    """A fresh log, a fresh server."""
    with serving(case, engine) as served:

        async def measure() -> Run:
            return await _measure(case, served, options, seed)

        return run_on_loop(measure)


def run(options: Options) -> list[Table]:
    """Measure every case, run by run, and put the percentiles of each run in a table."""
    runs: dict[Case, list[Run]] = {}
    with started(ALL, options) as engines:
        cases = [case for case in CASES if case.engine in engines and options.wants(case.who)]
        cases = [case for case in cases if not case.layer or find_spec(CHANNELS) is not None]
        for turn in range(options.runs):
            for case in cases:
                found = one_run(case, engines[case.engine], options, turn)
                runs.setdefault(case, []).append(found)
                print(
                    f"  run {turn + 1}: {case.engine}, {case.who}, {case.label}: "
                    f"p50 {percentile(found.arrived, 0.5):.2f} ms, p99 {percentile(found.arrived, 0.99):.2f} ms",
                    flush=True,
                )
    table = Table(
        title="From another process's publish() to a stream",
        columns=("engine", "who", "how", "p50 ms", "p99 ms", "max ms", "target of p99", "the call itself, p50 ms"),
        note=f"All rows of one engine share one server of it. {CHANNELS} keeps nothing: who is not connected misses "
        "the message.",
    )
    for case, done in runs.items():
        figures = (spread([percentile(run.arrived, share) for run in done]) for share in (0.5, 0.99, 1.0))
        call = spread([percentile(run.calls, 0.5) for run in done])
        table.rows.append((case.engine, case.who, case.label, *figures, case.target, call))
    return [table]

"""A log of a million events is trimmed: how long that takes, and what a publisher notices of it."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bench.engines import POSTGRESQL, SQLITE, Engine, started
from bench.process import BenchError, run_json, running
from bench.report import Table
from bench.stats import number, percentile, spread

if TYPE_CHECKING:
    from bench.options import Options

EVENTS = 1_000_000
KEPT = 1000
#: Publishes a second.
RATE = 200.0
#: Seconds of publishing before the trim begins, to compare with.
ALONE = 5.0


@dataclass(frozen=True, kw_only=True)
class Run:
    """One trim: how many seconds it took, and the publisher's milliseconds a call before it and during it."""

    seconds: float
    alone: list[float]
    during: list[float]


def one_run(engine: Engine, options: Options) -> Run:
    """A fresh log, filled by the database itself; a publisher, and a trim in another process."""
    events = EVENTS // 20 if options.quick else EVENTS
    with engine.fresh(kept=KEPT) as log:
        run_json("bench.fill", "sql", str(events), env=log.env, core="any")
        with running("bench.retention_worker", "publish", str(RATE), env=log.env, core="any") as publisher:
            if publisher.stdout is None or publisher.stdout.readline() != "ready\n":
                raise BenchError("the publisher did not begin; its errors are above")
            begun = time.time()
            time.sleep(1.0 if options.quick else ALONE)
            start, end = run_json("bench.retention_worker", "prune", env=log.env, core="any")
            publisher.terminate()
            output, _ = publisher.communicate(timeout=60)
    calls = json.loads(output.splitlines()[-1])
    # A call that had begun before the trim did may have met it.
    alone = [took * 1000 for at, took in calls if begun <= at and at + took < start]
    during = [took * 1000 for at, took in calls if at + took >= start and at < end]
    return Run(seconds=end - start, alone=alone, during=during)


def run(options: Options) -> list[Table]:
    """Measure both engines, run by run."""
    found: dict[str, list[Run]] = {}
    with started((SQLITE, POSTGRESQL), options) as engines:
        for turn in range(options.runs):
            for name, engine in engines.items():
                result = one_run(engine, options)
                found.setdefault(name, []).append(result)
                print(
                    f"  run {turn + 1}: {name}: {number(result.seconds)} s, "
                    f"p99 {percentile(result.during, 0.99):.2f} ms, alone {percentile(result.alone, 0.99):.2f} ms",
                    flush=True,
                )
    events = EVENTS // 20 if options.quick else EVENTS
    table = Table(
        title=f"`prune_events` on a log of {events:,} events, {KEPT:,} kept",
        columns=("engine", "publishing", "trim s", "calls", "p50 ms", "p99 ms", "max ms"),
        note=f"One other process calls publish() {RATE:g} times a second meanwhile: for {ALONE:g} s before the trim, "
        "and for as long as that takes.",
    )
    for name, runs in found.items():
        for label, calls in (
            ("before", [run.alone for run in runs]),
            ("during the trim", [run.during for run in runs]),
        ):
            table.rows.append(
                (
                    name,
                    label,
                    "" if label == "before" else spread([run.seconds for run in runs]),
                    f"{sum(map(len, calls)):,}",
                    *(spread([percentile(values, share) for values in calls]) for share in (0.5, 0.99, 1.0)),
                )
            )
    return [table]

"""Durable publishing on SQLite from one process."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bench.peers import EVENTSTREAM, EVENTSTREAM_MODEL, OURS, by_name
from bench.process import BenchError, run_json
from bench.report import Table
from bench.scratch import folder
from bench.stats import median, number, ratio, spread

if TYPE_CHECKING:
    from bench.options import Options


#: Every second instead of every 30.
TRIMMING = {"BACKEND": "events.backends.database.DatabaseBackend", "OPTIONS": {"trim_interval": 1.0}}


@dataclass(frozen=True, kw_only=True)
class Case:
    """One row. ``trims`` makes this project keep 1,000 events and trim every second while it publishes."""

    peer: str
    label: str
    batch: int = 1
    count: int
    synchronous: str = "NORMAL"
    trims: bool = False


CASES = (
    Case(peer=EVENTSTREAM_MODEL, label="send_event", count=2_000),
    Case(peer=OURS, label="publish", count=20_000),
    Case(peer=OURS, label="publish, 1,000 kept, trimmed every second", count=40_000, trims=True),
    Case(peer=OURS, label="publish_many, 100 at a time", batch=100, count=100_000),
    Case(peer=OURS, label="publish_many, 1,000 at a time", batch=1_000, count=100_000),
    Case(peer=EVENTSTREAM_MODEL, label="send_event", count=2_000, synchronous="FULL"),
    Case(peer=OURS, label="publish", count=4_000, synchronous="FULL"),
    Case(peer=OURS, label="publish_many, 100 at a time", batch=100, count=100_000, synchronous="FULL"),
    Case(peer=OURS, label="publish_many, 1,000 at a time", batch=1_000, count=100_000, synchronous="FULL"),
)


def measure(case: Case, options: Options) -> dict[str, float]:
    """One run of one case: a fresh database, a fresh process."""
    peer = by_name(case.peer)
    count = max(case.batch, case.count // 10) if options.quick else case.count
    with folder() as place:
        env = peer.environment(place, synchronous=case.synchronous)
        if case.trims:
            env["BENCH_BACKEND"] = json.dumps(TRIMMING)
        peer.prepare(env, kept=1_000 if case.trims else 10_000_000)
        kind = "eventstream" if case.peer == EVENTSTREAM_MODEL else "ours"
        figures: dict[str, float] = run_json(
            "bench.publish_worker", kind, str(case.batch), str(count), env=env, core="server"
        )
    if not case.trims and figures["rows"] != count:
        raise BenchError(f"{case.peer}, {case.label}: {count} published, {figures['rows']} in the table")
    return figures


def run(options: Options) -> list[Table]:
    """Measure every case, run by run, so that a busy minute falls on all of them alike."""
    cases = [case for case in CASES if by_name(case.peer).installed() and options.wants(case.peer)]
    found: dict[Case, list[dict[str, float]]] = {case: [] for case in cases}
    for turn in range(options.runs):
        for case in cases:
            figures = measure(case, options)
            found[case].append(figures)
            print(
                f"  run {turn + 1}: {case.peer}, {case.label}, {case.synchronous}: {number(figures['rate'])} events/s",
                flush=True,
            )
    base = {
        case.synchronous: median([run["rate"] for run in runs])
        for case, runs in found.items()
        if case.peer == EVENTSTREAM_MODEL
    }
    table = Table(
        title="Durable publishing on SQLite, one process",
        columns=(
            "synchronous",
            "who",
            "how",
            "events/s",
            f"× {EVENTSTREAM}",
            "CPU µs/event",
        ),
        note="Target: at least 5,000 events/s one by one and 20,000 with publish_many (WAL, synchronous NORMAL). "
        f"{EVENTSTREAM} has no call for many events at once.",
    )
    for case, runs in found.items():
        rate = median([run["rate"] for run in runs])
        table.rows.append(
            (
                case.synchronous,
                EVENTSTREAM if case.peer == EVENTSTREAM_MODEL else case.peer,
                case.label,
                spread([run["rate"] for run in runs]),
                ratio(rate, base.get(case.synchronous, 0.0)),
                spread([run["cpu"] for run in runs]),
            )
        )
    return [table]

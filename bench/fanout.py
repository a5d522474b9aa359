"""Many streams of one channel: CPU per delivered event, memory per stream, what arrives and when."""

from __future__ import annotations

import asyncio
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from bench import machine
from bench.contenders import FAILURES, Contender, Served, find, rounds
from bench.load import Caller, Streams
from bench.observed import Server, Window, arrived, warm_up, window
from bench.options import MANY
from bench.peers import EVENTSTREAM_MODEL, PEERS
from bench.report import Figure, Table
from bench.servers import NGINX, UVICORN
from bench.stats import median, number, ratio, spread

if TYPE_CHECKING:
    from bench.options import Options

#: Every number of streams is measured on these, or on those that `--servers` names; the others have 1,000.
SCALED = (UVICORN, NGINX)
#: Percent of the server's core. Above it, p50 and p99 are theirs rather than the server's.
DISTURBED = 10.0
#: So many streams are timed, spread over all.
SAMPLED = 100
#: django-eventstream's durable storage is measured by `publish`; what it costs there is not about streams.
NAMES = tuple(peer.name for peer in PEERS if peer.name != EVENTSTREAM_MODEL)


@dataclass(frozen=True, kw_only=True)
class Crowd:
    """
    What one server did with so many streams. Memory in KiB per stream.

    ``alone`` is the CPU per delivered event, in microseconds, without what the same requests take while nobody listens.
    """

    uss: float
    rss: float
    threads: int
    window: Window
    alone: float


@dataclass(kw_only=True)
class Run:
    """One server's life, by number of streams, and what ended it early."""

    crowds: dict[int, Crowd] = field(default_factory=dict)
    failed: str = ""

    def told(self) -> str:
        """A line for who watches."""
        said = [f"{n:,}: {number(c.window.cpu)} µs, {number(c.uss)} KiB" for n, c in self.crowds.items()]
        others = max((crowd.window.others for crowd in self.crowds.values()), default=0.0)
        if others > DISTURBED:
            said.append(f"DISTURBED: others used {number(others)} % of the server's core")
        return "; ".join(said + ([f"then FAILED: {self.failed}"] if self.failed else []))


async def _measure(contender: Contender, served: Served, options: Options) -> Run:
    server, caller = Server(served.pid), Caller(served.port)
    await warm_up(Streams(served.port, contender.peer.stream), caller)
    empty = server.memory()
    publishing = await _publishing(server, caller, options)
    run = Run()
    streams = Streams(served.port, contender.peer.stream)
    count = wanted = 0
    try:
        for wanted in _counts(contender, options):
            await streams.open(wanted - count, every=max(1, wanted // SAMPLED))
            count = wanted
            run.crowds[count] = await _crowd(server, streams, caller, empty, publishing, count, options)
    except FAILURES as error:
        if not run.crowds:
            raise
        # What it did before stands.
        run.failed = f"at {wanted:,} streams: {str(error) or type(error).__name__}"
    finally:
        await streams.close()
        await caller.close()
    return run


async def _publishing(server: Server, caller: Caller, options: Options) -> float:
    """CPU in microseconds of one request that publishes, while no stream is open."""
    cpu = server.cpu()
    published = await caller.publish(options.rate, options.seconds)
    await asyncio.sleep(0.5)
    return (server.cpu() - cpu) / published * 1e6


async def _crowd(
    server: Server,
    streams: Streams,
    caller: Caller,
    empty: tuple[float, float],
    publishing: float,
    count: int,
    options: Options,
) -> Crowd:
    await asyncio.sleep(2.0)
    await caller.call("GET", "/collect")
    uss, rss = server.memory()
    threads = server.threads()
    # The first event to so many streams finds what it needs for the first time.
    await caller.publish(2.0, 1.0)
    await streams.settle(expected=streams.tally.frames + 2 * count, quiet=1.0)
    found = await window(server, streams, caller, count=count, rate=options.rate_for(count), seconds=options.seconds)
    return Crowd(
        uss=(uss - empty[0]) / count,
        rss=(rss - empty[1]) / count,
        threads=threads,
        window=found,
        alone=found.cpu - publishing * found.published / found.delivered if found.delivered else math.nan,
    )


def _counts(contender: Contender, options: Options) -> tuple[int, ...]:
    """How many streams it is measured with."""
    if contender.server not in (options.servers or SCALED):
        return (options.crowd,)
    if contender.peer.small:
        return tuple(count for count in options.streams if count <= MANY) or options.streams
    return options.streams


def run(options: Options) -> list[Table]:
    """Measure every peer on every server."""
    machine.raise_open_files(max(options.streams) + 200)

    contenders = find(options, names=NAMES)
    found, failed = rounds(contenders, options, _measure, Run.told)
    ended = {f"{contender.name} {run.failed}" for contender, runs in found.items() for run in runs if run.failed}
    tables = [_table(count, options, found) for count in options.streams]
    tables[0].note += failed + (f" Ended early: {'; '.join(sorted(ended))}." if ended else "")
    tables.append(_memory_table(options, found))
    return tables


def _table(count: int, options: Options, found: dict[Contender, list[Run]]) -> Table:
    table = Table(
        title=f"Fan-out: {count:,} streams, {options.rate_for(count):g} events/s",
        columns=(
            "who",
            "server",
            "CPU µs per delivered event",
            "× first row",
            "without publishing",
            "server busy %",
            "client busy %",
            "others on the server's core %",
            "published of wanted",
            "delivered of expected",
            "p50 ms",
            "p99 ms",
        ),
        note="Where the server and others together take the whole core, the server is past what it can do: events "
        "wait, several leave together or are dropped, and the CPU figure flatters it. Without publishing: less what "
        "the same requests take while no stream is open.",
    )
    base = 0.0
    for contender, runs in found.items():
        windows = [run.crowds[count].window for run in runs if count in run.crowds]
        if runs and not windows:
            # It has other numbers of streams.
            continue
        cpu = [w.cpu for w in windows]
        alone = [run.crowds[count].alone for run in runs if count in run.crowds]
        base = base or median(cpu)
        table.figures[Figure("cpu", contender.name, count)] = cpu
        table.figures[Figure("alone", contender.name, count)] = alone
        table.figures[Figure("p99", contender.name, count)] = [w.p99 for w in windows]
        table.rows.append(
            (
                contender.label,
                contender.server,
                spread(cpu),
                ratio(median(cpu), base),
                spread(alone),
                spread([w.busy for w in windows]),
                spread([w.client for w in windows]),
                spread([w.others for w in windows]),
                *arrived(windows),
                spread([w.p50 for w in windows]),
                spread([w.p99 for w in windows]),
            )
        )
    return table


def _memory_table(options: Options, found: dict[Contender, list[Run]]) -> Table:
    counts = options.streams
    table = Table(
        title="Memory per idle stream",
        columns=(
            "who",
            "server",
            *(f"{count:,} streams, USS KiB" for count in counts),
            f"{counts[-1]:,} streams, RSS KiB",
            f"threads with {counts[-1]:,}",
            "what it keeps",
        ),
        note="Threads: of the whole server while the streams are idle.",
    )
    for contender, runs in found.items():
        crowds = {count: [run.crowds[count] for run in runs if count in run.crowds] for count in counts}
        for count in counts:
            table.figures[Figure("memory", contender.name, count)] = [crowd.uss for crowd in crowds[count]]
        table.rows.append(
            (
                contender.label,
                contender.server,
                *(spread([crowd.uss for crowd in crowds[count]]) for count in counts),
                spread([crowd.rss for crowd in crowds[counts[-1]]]),
                number(median([crowd.threads for crowd in crowds[counts[-1]]])),
                contender.peer.note,
            )
        )
    return table

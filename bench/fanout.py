"""A thousand streams: CPU per delivered event, memory per stream, what arrives and when."""

from __future__ import annotations

import asyncio
import math
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import psutil

from bench import machine
from bench.load import Caller, Streams, run_on_loop
from bench.peers import OURS, PEERS, Peer, folder
from bench.process import BenchError, uvicorn
from bench.report import Table
from bench.stats import median, number, percentile, ratio, spread

if TYPE_CHECKING:
    from bench.options import Options

WARM_UP_STREAMS = 20
SAMPLED = 20
FAILURES = (BenchError, OSError, TimeoutError, asyncio.TimeoutError, EOFError, psutil.Error)


@dataclass(frozen=True, kw_only=True)
class Window:
    """One stretch of publishing. CPU in microseconds per delivered event, shares in percent, times in milliseconds.

    ``others`` is what everything else, and the machine's host, took of the server's core.
    """

    cpu: float
    busy: float
    client: float
    others: float
    published: int
    wanted: int
    delivered: int
    expected: int
    p50: float
    p99: float


@dataclass(kw_only=True)
class Run:
    """One server's life. Memory in KiB per stream; NaN where the system does not tell it."""

    uss: float
    rss: float
    uss_after: float = math.nan
    threads: int = 0
    windows: dict[float, Window] = field(default_factory=dict)


class Server:
    """The server's process tree, seen from outside."""

    def __init__(self, pid: int) -> None:
        self._process = psutil.Process(pid)

    def _all(self) -> list[psutil.Process]:
        return [self._process, *self._process.children(recursive=True)]

    def cpu(self) -> float:
        """Seconds of user and system time so far."""
        return sum(sum(process.cpu_times()[:2]) for process in self._all())

    def memory(self) -> tuple[float, float]:
        """USS and RSS in KiB."""
        uss = rss = 0.0
        for process in self._all():
            info = process.memory_full_info()
            uss += getattr(info, "uss", math.nan) / 1024
            rss += info.rss / 1024
        return uss, rss

    def threads(self) -> int:
        """How many threads it has."""
        return int(sum(process.num_threads() for process in self._all()))


def _core_busy() -> float:
    """Seconds the server's core was not idle so far, whoever used it. NaN where nothing is pinned."""
    pair = machine.cores()
    if pair is None:
        return math.nan
    times = psutil.cpu_times(percpu=True)[pair[0]]
    return float(sum(times[:8]) - times.idle - getattr(times, "iowait", 0.0))


async def _window(server: Server, streams: Streams, caller: Caller, rate: float, options: Options) -> Window:
    tally = streams.tally
    tally.latencies.clear()
    frames, cpu, start = tally.frames, server.cpu(), time.monotonic()
    client, core = time.process_time(), _core_busy()
    published = await caller.publish(rate, options.seconds)
    expected = published * options.streams
    await streams.settle(expected=frames + expected)
    used, took = server.cpu() - cpu, time.monotonic() - start
    client, core = time.process_time() - client, _core_busy() - core
    delivered = tally.frames - frames
    return Window(
        cpu=used / delivered * 1e6 if delivered else math.nan,
        busy=used / took * 100,
        client=client / took * 100,
        others=max(0.0, core - used) / took * 100,
        published=published,
        wanted=round(rate * options.seconds),
        delivered=delivered,
        expected=expected,
        p50=percentile(tally.latencies, 0.5) * 1000,
        p99=percentile(tally.latencies, 0.99) * 1000,
    )


async def _measure(peer: Peer, port: int, pid: int, options: Options) -> Run:
    server, caller = Server(pid), Caller(port)
    # First a few streams and events, so that what is loaded and made only once is not counted as a stream's.
    first = Streams(port, peer.stream)
    await first.open(WARM_UP_STREAMS, every=1)
    await caller.publish(options.rate, 1.0)
    await first.close()
    await asyncio.sleep(1.0)
    await caller.call("GET", "/collect")
    empty = server.memory()

    streams = Streams(port, peer.stream)
    await streams.open(options.streams, every=max(1, options.streams // SAMPLED))
    await asyncio.sleep(2.0)
    await caller.call("GET", "/collect")
    full = server.memory()
    run = Run(uss=(full[0] - empty[0]) / options.streams, rss=(full[1] - empty[1]) / options.streams)
    run.threads = server.threads()

    await caller.publish(options.rate / 4, 2.0)
    await streams.settle(expected=streams.tally.frames + options.streams, quiet=1.0)
    for rate in rates(options):
        run.windows[rate] = await _window(server, streams, caller, rate, options)
        await asyncio.sleep(0.5)
    await caller.call("GET", "/collect")
    run.uss_after = (server.memory()[0] - empty[0]) / options.streams
    await streams.close()
    await caller.close()
    return run


def rates(options: Options) -> tuple[float, ...]:
    """A quarter of the rate, at which every peer has time to spare, then the rate itself."""
    return (options.rate / 4, options.rate)


def one_run(peer: Peer, options: Options) -> Run:
    """Start a fresh server, measure it, end it."""
    with folder() as place:
        env = peer.environment(place)
        peer.prepare(env)
        with uvicorn(peer.app, env=env) as (process, port):

            async def measure() -> Run:
                return await _measure(peer, port, process.pid, options)

            return run_on_loop(measure)


def run(options: Options) -> list[Table]:
    """Measure every peer, run by run, so that a busy minute falls on all of them alike."""
    machine.raise_open_files(options.streams + 200)
    peers = [peer for peer in PEERS if peer.installed() and options.wants(peer.name)]
    found: dict[str, list[Run]] = {peer.name: [] for peer in peers}
    failed: list[str] = []
    for turn in range(options.runs):
        for peer in peers:
            try:
                result = one_run(peer, options)
            except FAILURES as error:
                # One server that gave up shall not lose the others' figures.
                print(f"  run {turn + 1}: {peer.name} FAILED: {str(error) or type(error).__name__}", flush=True)
                failed.append(peer.name)
                continue
            found[peer.name].append(result)
            cpu = ", ".join(f"{number(window.cpu)} µs at {rate:g}/s" for rate, window in result.windows.items())
            print(f"  run {turn + 1}: {peer.name}: {cpu}, {number(result.uss)} KiB a stream", flush=True)
    tables = [_cpu_table(options, rate, peers, found) for rate in rates(options)]
    tables.append(_memory_table(options, peers, found))
    if failed:
        tables[0].note += " Runs that failed and are left out: " + ", ".join(failed) + "."
    return tables


def _cpu_table(options: Options, rate: float, peers: list[Peer], found: dict[str, list[Run]]) -> Table:
    table = Table(
        title=f"Fan-out: {options.streams:,} streams, {rate:g} events/s, uvicorn, response lane",
        columns=(
            "who",
            "CPU µs per delivered event",
            f"× {OURS}",
            "server busy %",
            "client busy %",
            "others on the server's core %",
            "published of wanted",
            "delivered of expected",
            "p50 ms",
            "p99 ms",
        ),
        note="Where the server and others together take the whole core, the server is past what it can do: events "
        "wait, several leave together or are dropped, and the CPU figure flatters it. Compare it at the lower rate."
        + (" Target: at most 45 µs at 20 events/s." if rate == options.rate else ""),
    )
    ours = median([run.windows[rate].cpu for run in found.get(OURS, [])])
    for peer in peers:
        windows = [run.windows[rate] for run in found[peer.name]]
        wanted, published = sum(w.wanted for w in windows), sum(w.published for w in windows)
        expected, delivered = sum(w.expected for w in windows), sum(w.delivered for w in windows)
        table.rows.append(
            (
                peer.name,
                spread([w.cpu for w in windows]),
                ratio(median([w.cpu for w in windows]), ours),
                spread([w.busy for w in windows]),
                spread([w.client for w in windows]),
                spread([w.others for w in windows]),
                f"{published:,} of {wanted:,}",
                f"{delivered:,} of {expected:,} ({delivered / expected:.1%})" if expected else "–",
                spread([w.p50 for w in windows]),
                spread([w.p99 for w in windows]),
            )
        )
    return table


def _memory_table(options: Options, peers: list[Peer], found: dict[str, list[Run]]) -> Table:
    table = Table(
        title=f"Memory per stream, {options.streams:,} streams",
        columns=(
            "who",
            "idle, USS KiB",
            f"× {OURS}",
            "idle, RSS KiB",
            "after the load, USS KiB",
            "threads",
            "what it keeps",
        ),
        note="Target: at most 48 KiB per idle stream. Threads: of the whole server while the streams are idle.",
    )
    ours = median([run.uss for run in found.get(OURS, [])])
    for peer in peers:
        runs = found[peer.name]
        table.rows.append(
            (
                peer.name,
                spread([run.uss for run in runs]),
                ratio(median([run.uss for run in runs]), ours),
                spread([run.rss for run in runs]),
                spread([run.uss_after for run in runs]),
                number(median([run.threads for run in runs])),
                peer.note,
            )
        )
    return table

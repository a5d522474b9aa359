"""A server seen from outside: its CPU time and memory, and what else its core does."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import psutil

from bench import machine
from bench.stats import percentile

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bench.load import Caller, Streams


class Server:
    """The server's process tree."""

    def __init__(self, pid: int) -> None:
        self._process = psutil.Process(pid)

    def _all(self) -> list[psutil.Process]:
        return [self._process, *self._process.children(recursive=True)]

    def cpu(self) -> float:
        """Seconds of user and system time so far."""
        return sum(machine.process_cpu(process.pid) for process in self._all())

    def memory(self) -> tuple[float, float]:
        """USS, with what the processes share among each other only, and RSS. In KiB; NaN where nothing tells it."""
        processes = self._all()
        uss = rss = 0.0
        for process in processes:
            info = process.memory_full_info()
            uss += getattr(info, "uss", math.nan) / 1024
            rss += info.rss / 1024
            if len(processes) > 1:
                uss += _shared(process) / 1024
        return uss, rss

    def threads(self) -> int:
        """How many threads it has."""
        return int(sum(process.num_threads() for process in self._all()))


def _shared(process: psutil.Process) -> float:
    """
    A process's share, in bytes, of memory that was made to be shared and belongs to no file: nginx's zones.

    What it alone has touched of it is in its USS already.
    """
    total = 0.0
    for area in process.memory_maps(grouped=False):
        if area.path.startswith("/dev/zero"):
            total += area.pss - area.private_clean - area.private_dirty
    return total


def core_busy() -> float:
    """Seconds the server's core was not idle so far, whoever used it. NaN where nothing is pinned."""
    pair = machine.cores()
    if pair is None:
        return math.nan
    times = psutil.cpu_times(percpu=True)[pair[0]]
    return float(sum(times[:8]) - times.idle - getattr(times, "iowait", 0.0))


@dataclass(frozen=True, kw_only=True)
class Window:
    """
    One stretch of publishing. CPU in microseconds per delivered event, shares in percent, times in milliseconds.

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
    latencies: list[float]

    @property
    def p50(self) -> float:
        """The median latency."""
        return percentile(self.latencies, 0.5)

    @property
    def p99(self) -> float:
        """The latency that one of a hundred exceeds."""
        return percentile(self.latencies, 0.99)


async def window(
    server: Server,
    streams: Streams,
    caller: Caller,
    *,
    count: int,
    rate: float,
    seconds: float,
    burst: int = 1,
    pipelined: bool = False,
) -> Window:
    """Publish ``burst`` events ``rate`` times a second to ``count`` open streams, and wait until all have arrived."""
    tally = streams.tally
    tally.latencies.clear()
    frames, cpu, start = tally.frames, server.cpu(), time.monotonic()
    client, core = time.process_time(), core_busy()
    published = await caller.publish(rate, seconds, burst=burst, pipelined=pipelined)
    expected = published * count
    await streams.settle(expected=frames + expected, longest=15.0)
    used, took = server.cpu() - cpu, time.monotonic() - start
    client, core = time.process_time() - client, core_busy() - core
    delivered = tally.frames - frames
    return Window(
        cpu=used / delivered * 1e6 if delivered else math.nan,
        busy=used / took * 100,
        client=client / took * 100,
        others=max(0.0, core - used) / took * 100,
        published=published,
        wanted=round(rate * seconds) * burst,
        delivered=delivered,
        expected=expected,
        latencies=[seconds * 1000 for seconds in tally.latencies],
    )


def arrived(windows: Sequence[Window]) -> tuple[str, str]:
    """Cells of a table: how many were published of those wanted, and delivered of those expected."""
    wanted, published = sum(w.wanted for w in windows), sum(w.published for w in windows)
    expected, delivered = sum(w.expected for w in windows), sum(w.delivered for w in windows)
    return (
        f"{published:,} of {wanted:,}",
        f"{delivered:,} of {expected:,} ({delivered / expected:.1%})" if expected else "–",
    )


WARM_UP_STREAMS = 20


async def warm_up(streams: Streams, caller: Caller) -> None:
    """A few streams and events, so that what is loaded and made only once is not counted as a stream's."""
    await streams.open(WARM_UP_STREAMS, every=1)
    await caller.publish(20.0, 1.0)
    await streams.close(quiet=1.0)
    await caller.call("GET", "/collect")

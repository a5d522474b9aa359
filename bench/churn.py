"""What 10,000 clients that came and went leave behind."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bench.connect import come_and_go
from bench.contenders import Contender, Served, find, rounds
from bench.load import Caller, Streams
from bench.observed import Server
from bench.peers import EVENTSTREAM, NCHAN, OURS, STARLETTE
from bench.report import Figure, Table
from bench.servers import NGINX, UVICORN
from bench.stats import number, spread

if TYPE_CHECKING:
    from bench.options import Options

CONNECTS = 10_000
WARM_UP = 1_000
NAMES = (OURS, EVENTSTREAM, STARLETTE, NCHAN)


@dataclass(frozen=True, kw_only=True)
class Run:
    """USS in MB before and after, and threads after."""

    before: float
    after: float
    threads: int

    @property
    def grown(self) -> float:
        """How much is left behind."""
        return self.after - self.before


def _count(options: Options) -> int:
    return CONNECTS // 10 if options.quick else CONNECTS


async def _measure(contender: Contender, served: Served, options: Options) -> Run:
    count = _count(options)
    server, caller = Server(served.pid), Caller(served.port)
    streams = Streams(served.port, contender.peer.stream)

    async def memory() -> float:
        # For what a server notices and ends late.
        await asyncio.sleep(3.0)
        # Garbage that the first collection frees may hold what the second one finds.
        for _ in range(2):
            await caller.call("GET", "/collect")
        return server.memory()[0] / 1024

    await come_and_go(streams, WARM_UP)
    before = await memory()
    await come_and_go(streams, count)
    found = Run(before=before, after=await memory(), threads=server.threads())
    await caller.close()
    return found


def run(options: Options) -> list[Table]:
    """Measure this project, and others for comparison."""

    contenders = find(options, names=NAMES, on=(UVICORN, NGINX))
    found, failed = rounds(contenders, options, _measure, lambda it: f"{it.grown:+.2f} MB")
    table = Table(
        title=f"Memory after {_count(options):,} connects and aborts",
        columns=("who", "server", "before, USS MB", "after, USS MB", "grown MB", "threads after"),
        note=f"Before: after {WARM_UP:,} others, and a garbage collection." + failed,
    )
    for contender, runs in found.items():
        table.figures[Figure("churn", contender.name)] = [it.grown for it in runs]
        table.rows.append(
            (
                contender.label,
                contender.server,
                spread([it.before for it in runs]),
                spread([it.after for it in runs]),
                spread([it.grown for it in runs]),
                number(max((it.threads for it in runs), default=0)),
            )
        )
    return [table]

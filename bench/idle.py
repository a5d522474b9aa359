"""What a server costs that has streams open and nothing to do."""

from __future__ import annotations

import asyncio
import contextlib
import time
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import TYPE_CHECKING

import psutil

from bench.engines import Engine, process_cpu, started
from bench.latency import CASES, serving
from bench.load import Streams, run_on_loop
from bench.peers import BARE, CHANNELS, OURS, by_name
from bench.report import Table
from bench.servers import uvicorn
from bench.stats import spread

if TYPE_CHECKING:
    from bench.options import Options

STREAMS = 100
#: Longer than the 12 to 15 s after which this project sends a keep-alive to each stream, not all at one moment.
SECONDS = 20.0
#: After the streams are open: what opening them left to do.
SETTLE = 5.0


@dataclass(kw_only=True)
class Site:
    """One running server, and how many percent of a core it and its engine used in each window."""

    who: str
    engine: Engine | None
    server: psutil.Process
    streams: Streams
    own: list[float] = field(default_factory=list)
    engines: list[float] = field(default_factory=list)

    def cpu(self) -> tuple[float, float]:
        """Seconds used so far, by the server and by its engine."""
        own = process_cpu([self.server, *self.server.children(recursive=True)])
        return own, self.engine.cpu() if self.engine else 0.0


async def _measure(sites: list[Site], options: Options) -> None:
    seconds = 5.0 if options.quick else SECONDS
    for site in sites:
        await site.streams.open(STREAMS, every=STREAMS)
    await asyncio.sleep(SETTLE)
    for turn in range(options.runs):
        before, start = [site.cpu() for site in sites], time.monotonic()
        await asyncio.sleep(seconds)
        took = time.monotonic() - start
        for site, (own, engine) in zip(sites, before, strict=True):
            now = site.cpu()
            site.own.append((now[0] - own) / took * 100)
            site.engines.append((now[1] - engine) / took * 100)
        print(f"  run {turn + 1}: " + ", ".join(f"{site.who} {site.own[-1]:.2f} %" for site in sites), flush=True)
    for site in sites:
        await site.streams.close()


def _started(stack: contextlib.ExitStack, options: Options) -> list[Site]:
    """Start every site, each with an engine of its own, so that nobody is charged with another's."""
    sites = []
    for case in CASES:
        # How a message is sent makes no difference where none is.
        if not options.wants(case.who) or case.how == "async_to_sync" or (case.layer and find_spec(CHANNELS) is None):
            continue
        for engine in stack.enter_context(started([case.engine], options)).values():
            served = stack.enter_context(serving(case, engine))
            who = f"{case.who}, {case.layer.rpartition('.')[2]}" if case.layer else case.who
            streams = Streams(served.port, served.stream)
            sites.append(Site(who=who, engine=engine, server=psutil.Process(served.pid), streams=streams))
    bare = by_name(BARE)
    if options.wants(BARE):
        process, port = stack.enter_context(uvicorn(bare.app, env={}))
        sites.append(
            Site(who=BARE, engine=None, server=psutil.Process(process.pid), streams=Streams(port, bare.stream))
        )
    return sites


def run(options: Options) -> list[Table]:
    """Let all sites idle at the same time: they do not disturb each other, and it takes a fraction of the time."""
    with contextlib.ExitStack() as stack:
        sites = _started(stack, options)

        async def measure() -> None:
            await _measure(sites, options)

        run_on_loop(measure)
    table = Table(
        title=f"A server with {STREAMS} open streams and no traffic",
        columns=("engine", "who", "server, % of a core", "engine, % of a core", "target"),
        note=f"User and system time in windows of {SECONDS:.0f} s, all sites at the same time. This project sends its "
        "keep-alives meanwhile, the others send nothing.",
    )
    for site in sites:
        table.rows.append(
            (
                site.engine.name if site.engine else "–",
                site.who,
                spread(site.own),
                spread(site.engines) if site.engine and site.engine.server else "–",
                "below 1" if site.who == OURS else "",
            )
        )
    return [table]

"""What it costs to connect with a session, through Django's usual middleware."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bench.contenders import Contender, Served, find, rounds
from bench.load import Streams
from bench.observed import Server
from bench.peers import EVENTSTREAM, OURS
from bench.report import Figure, Table
from bench.servers import DAPHNE, UVICORN
from bench.stats import median, number, ratio, spread

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bench.options import Options

CONNECTS = 1_000
WARM_UP = 100
AT_ONCE = 20


@dataclass(frozen=True, kw_only=True)
class Run:
    """Per connect: the server's CPU time and the wall time it takes with 20 at once, in µs."""

    cpu: float
    wall: float


def _count(options: Options) -> int:
    return CONNECTS // 5 if options.quick else CONNECTS


async def come_and_go(streams: Streams, count: int) -> None:
    """Open ``count`` streams and close them again, ``AT_ONCE`` at a time."""
    for start in range(0, count, AT_ONCE):
        await streams.open(min(AT_ONCE, count - start), every=AT_ONCE)
        await streams.close(quiet=0.0)


async def _measure(contender: Contender, served: Served, options: Options) -> Run:
    count = _count(options)
    server, loop = Server(served.pid), asyncio.get_running_loop()
    streams = Streams(served.port, contender.peer.members, cookie=served.facts["cookie"], body=True)
    await come_and_go(streams, WARM_UP)
    await asyncio.sleep(1.0)
    cpu, start = server.cpu(), loop.time()
    await come_and_go(streams, count)
    took = loop.time() - start
    # What the last ones leave to do belongs to them.
    await asyncio.sleep(1.0)
    return Run(cpu=(server.cpu() - cpu) / count * 1e6, wall=took / count * 1e6)


@contextlib.contextmanager
def _held(served: Served) -> Iterator[None]:
    """
    Keep the database open from here, as another process of a site does.

    SQLite's last connection takes the write-ahead log away when it is closed, and the next one makes it anew: with
    clients that come and go and nobody else, that would be a good part of each connect.
    """
    with contextlib.closing(sqlite3.connect(served.folder / "bench.sqlite3")) as connection:
        connection.execute("SELECT count(*) FROM django_session").fetchall()
        yield


def run(options: Options) -> list[Table]:
    """Measure the Django peers, on the servers that both are measured on."""

    # --peers may name others, which have no stream for signed-in users.
    contenders = [it for it in find(options, names=(OURS, EVENTSTREAM), on=(UVICORN, DAPHNE)) if it.peer.members]
    found, failed = rounds(
        contenders,
        options,
        _measure,
        lambda it: f"{number(it.cpu)} µs a connect",
        env={"BENCH_MIDDLEWARE": "usual"},
        around=_held,
    )
    table = Table(
        title=f"{_count(options):,} connects with a session, {AT_ONCE} at a time",
        columns=("who", "server", "CPU µs per connect", f"× {EVENTSTREAM}", "µs per connect"),
        note="Ratios are to the same server's row. Sessions are in the database (SQLite)." + failed,
    )
    for contender, runs in found.items():
        cpu = [it.cpu for it in runs]
        table.figures[Figure("connect", contender.name)] = cpu
        base = next((it for it in found if it.peer.name == EVENTSTREAM and it.server == contender.server), None)
        table.rows.append(
            (
                contender.label,
                contender.server,
                spread(cpu),
                ratio(median(cpu), median([it.cpu for it in found[base]]) if base else 0.0),
                spread([it.wall for it in runs]),
            )
        )
    return [table]

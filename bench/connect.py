"""What it costs to connect with a session, and with a ticket, through Django's usual middleware."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import sqlite3
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bench.contenders import Contender, Served, find, rounds
from bench.load import Streams
from bench.observed import Server
from bench.peers import EVENTSTREAM, OURS
from bench.process import BenchError
from bench.report import Figure, Table
from bench.servers import DAPHNE, UVICORN
from bench.stats import median, number, ratio, spread

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Sequence

    from bench.options import Options

CONNECTS = 1_000
WARM_UP = 100
AT_ONCE = 20


@dataclass(frozen=True, kw_only=True)
class Window:
    """Per connect: the server's CPU time and the wall time it takes with 20 at once, in µs."""

    cpu: float
    wall: float


@dataclass(frozen=True, kw_only=True)
class Run:
    """Connects with a session and, where the peer has them, with tickets."""

    session: Window
    ticket: Window | None


def _count(options: Options) -> int:
    return CONNECTS // 5 if options.quick else CONNECTS


async def come_and_go(streams: Streams, count: int) -> None:
    """Open ``count`` streams and close them again, ``AT_ONCE`` at a time."""
    for start in range(0, count, AT_ONCE):
        await streams.open(min(AT_ONCE, count - start), every=AT_ONCE)
        await streams.close(quiet=0.0)


async def _all_come_and_go(clients: Sequence[Streams], count: int) -> None:
    """The same with clients of different URLs: one stream of each is open at once."""
    for _ in range(count // len(clients)):
        await asyncio.gather(*(client.open(1, every=1) for client in clients))
        await asyncio.gather(*(client.close(quiet=0.0) for client in clients))


async def _make_sure_of_events(port: int, path: str) -> None:
    """
    Wait for the event that the channel of ``path`` has kept. Raises BenchError where it does not come.

    A ticket's stream has its headers and first bytes before its user is asked for, and events only after that.
    """
    client = Streams(port, f"{path}&from=earliest", body=True)
    await client.open(1, every=1)
    await client.settle(expected=1, quiet=10.0)
    if client.tally.frames != 1:
        raise BenchError(f"a stream with a ticket got {client.tally.frames} events, not 1: it was not admitted")
    await client.close(quiet=0.0)


async def _window(served: Served, connect: Callable[[int], Awaitable[None]], count: int) -> Window:
    """Connect ``count`` times, after a warm-up. ``connect`` takes how often."""
    server, loop = Server(served.pid), asyncio.get_running_loop()
    await connect(WARM_UP)
    await asyncio.sleep(1.0)
    cpu, start = server.cpu(), loop.time()
    await connect(count)
    took = loop.time() - start
    # What the last ones leave to do belongs to them.
    await asyncio.sleep(1.0)
    return Window(cpu=(server.cpu() - cpu) / count * 1e6, wall=took / count * 1e6)


async def _measure(contender: Contender, served: Served, options: Options) -> Run:
    count, path = _count(options), contender.peer.members
    client = Streams(served.port, path, cookie=served.facts["cookie"], body=True)
    session = await _window(served, functools.partial(come_and_go, client), count)
    # Each of another user: streams of one user have one question about their rights, and one answer.
    paths = [f"{path}&ticket={ticket}" for ticket in served.facts.get("tickets", "").split()]
    if not paths:
        return Run(session=session, ticket=None)
    for it in paths:
        await _make_sure_of_events(served.port, it)
    clients = [Streams(served.port, it, body=True) for it in paths]
    ticket = await _window(served, functools.partial(_all_come_and_go, clients), count)
    return Run(session=session, ticket=ticket)


def _told(run: Run) -> str:
    said = f"{number(run.session.cpu)} µs a connect"
    return f"{said}, {number(run.ticket.cpu)} with a ticket" if run.ticket else said


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
        _told,
        env={"BENCH_MIDDLEWARE": "usual"},
        around=_held,
    )
    table = Table(
        title=f"{_count(options):,} connects of signed-in users, {AT_ONCE} at a time",
        columns=(
            "who",
            "server",
            "CPU µs per connect",
            f"× {EVENTSTREAM}",
            "× with a session",
            "µs per connect",
        ),
        note="Ratios are to the same server's row. Sessions are in the database (SQLite); a ticket is in the URL, and "
        "there is no cookie." + failed,
    )
    for contender, runs in found.items():
        session = [it.session for it in runs]
        cpu = [it.cpu for it in session]
        table.figures[Figure("connect", contender.name)] = cpu
        base = next((it for it in found if it.peer.name == EVENTSTREAM and it.server == contender.server), None)
        beside = ratio(median(cpu), median([it.session.cpu for it in found[base]]) if base else 0.0)
        table.rows.append(_row(contender.label, contender.server, session, beside, "–"))
        if ticket := [it.ticket for it in runs if it.ticket]:
            of_session = ratio(median([it.cpu for it in ticket]), median(cpu))
            table.rows.append(_row(f"{contender.label}, with a ticket", contender.server, ticket, "–", of_session))
    return [table]


def _row(who: str, server: str, windows: Sequence[Window], beside: str, of_session: str) -> tuple[str, ...]:
    cpu, wall = [it.cpu for it in windows], [it.wall for it in windows]
    return who, server, spread(cpu), beside, of_session, spread(wall)

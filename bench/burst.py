"""Several events published together, as each API has it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bench import machine
from bench.contenders import Contender, Served, find, rounds
from bench.load import Caller, Streams
from bench.observed import Server, Window, arrived, warm_up, window
from bench.peers import EVENTSTREAM_MODEL, PEERS
from bench.report import Figure, Table
from bench.servers import NGINX, UVICORN
from bench.stats import median, number, ratio, spread

if TYPE_CHECKING:
    from bench.options import Options

EVENTS = 10
#: Bursts a second.
RATE = 2.0
NAMES = tuple(peer.name for peer in PEERS if peer.name != EVENTSTREAM_MODEL)


async def _measure(contender: Contender, served: Served, options: Options) -> Window:
    count, pipelined = options.crowd, contender.peer.pipelined
    server, caller = Server(served.pid), Caller(served.port)
    await warm_up(Streams(served.port, contender.peer.stream), caller)
    streams = Streams(served.port, contender.peer.stream)
    await streams.open(count, every=max(1, count // 100))
    await caller.publish(RATE, 1.0, burst=EVENTS, pipelined=pipelined)
    await streams.settle(expected=round(RATE) * EVENTS * count)
    found = await window(
        server,
        streams,
        caller,
        count=count,
        rate=RATE,
        seconds=options.seconds,
        burst=EVENTS,
        pipelined=pipelined,
    )
    await streams.close()
    await caller.close()
    return found


def run(options: Options) -> list[Table]:
    """Measure every peer, on uvicorn where nothing else is asked for."""
    machine.raise_open_files(options.crowd + 200)

    contenders = find(options, names=NAMES, on=(UVICORN, NGINX))
    found, failed = rounds(contenders, options, _measure, lambda it: f"{number(it.cpu)} µs, p99 {number(it.p99)} ms")
    table = Table(
        title=f"Bursts: {options.crowd:,} streams, {RATE:g} bursts/s of {EVENTS} events",
        columns=(
            "who",
            "server",
            "how",
            "CPU µs per delivered event",
            "× first row",
            "server busy %",
            "client busy %",
            "published of wanted",
            "delivered of expected",
            "p50 ms",
            "p99 ms",
        ),
        note="Where the server is busy all the time, it is past what it can do." + failed,
    )
    base = 0.0
    for contender, windows in found.items():
        cpu = [w.cpu for w in windows]
        base = base or median(cpu)
        table.figures[Figure("burst", contender.name)] = cpu
        table.rows.append(
            (
                contender.label,
                contender.server,
                contender.peer.burst,
                spread(cpu),
                ratio(median(cpu), base),
                spread([w.busy for w in windows]),
                spread([w.client for w in windows]),
                *arrived(windows),
                spread([w.p50 for w in windows]),
                spread([w.p99 for w in windows]),
            )
        )
    return [table]

"""What a run is asked to do."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "bench" / "results.md"

#: More streams than this get a fifth of the rate: as many events in all would be more than a core can write.
MANY = 5_000


@dataclass(frozen=True, kw_only=True)
class Options:
    """One run's parameters. Seconds are of measuring, without warm-up."""

    names: tuple[str, ...]
    streams: tuple[int, ...] = (100, 1000, 9000)
    rate: float = 20.0
    seconds: float = 5.0
    runs: int = 3
    quick: bool = False
    peers: tuple[str, ...] = ()
    servers: tuple[str, ...] = ()
    lanes: tuple[str, ...] = ()
    engines: tuple[str, ...] = ()
    output: Path | None = RESULTS

    @property
    def crowd(self) -> int:
        """The number of streams where a benchmark has one number only: 1,000, or what comes closest from below."""
        return max((count for count in self.streams if count <= 1000), default=min(self.streams))

    def rate_for(self, streams: int) -> float:
        """Events per second for so many streams."""
        return self.rate / 5 if streams > MANY else self.rate

    def wants(self, peer: str, usual: Sequence[str] = ()) -> bool:
        """Whether this peer is to be measured. ``usual``: those that are if none is asked for; empty: all."""
        return _chosen(peer, self.peers, usual)

    def wants_server(self, name: str, usual: Sequence[str] = ()) -> bool:
        """Whether this server is to be measured."""
        return _chosen(name, self.servers, usual)

    def wants_lane(self, lane: str, usual: Sequence[str] = ()) -> bool:
        """Whether this lane is to be measured."""
        return _chosen(lane, self.lanes, usual)

    def wants_engine(self, name: str) -> bool:
        """Whether this engine is to be measured."""
        return not self.engines or name.lower() in self.engines


def _chosen(name: str, asked: Sequence[str], usual: Sequence[str]) -> bool:
    wanted = asked or usual
    return not wanted or name in wanted


def _words(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


def _counts(text: str) -> tuple[int, ...]:
    return tuple(sorted(int(part) for part in _words(text)))


def parse(argv: list[str], known: tuple[str, ...]) -> Options:
    """Read the command line. ``known`` are the names of the benchmarks."""
    parser = argparse.ArgumentParser(prog="python -m bench", description="Measure this project beside its peers.")
    parser.add_argument("names", nargs="*", metavar="name", help=f"which to run: {', '.join(known)} (default: all)")
    parser.add_argument("--streams", type=_counts, help="open streams in fanout (100,1000,9000)")
    parser.add_argument("--rate", type=float, help=f"events per second (20); a fifth of it above {MANY:,} streams")
    parser.add_argument("--seconds", type=float, help="seconds each window of publishing lasts (5)")
    parser.add_argument("--runs", type=int, help="runs of each case (3); the median is reported")
    parser.add_argument("--peers", type=_words, default=(), help="only these, comma-separated")
    parser.add_argument(
        "--servers", type=_words, default=(), help="only on these: uvicorn,hypercorn,daphne,granian,nginx"
    )
    parser.add_argument("--lanes", type=_words, default=(), help="only these of this project: direct,response")
    parser.add_argument("--engines", default="", help="only these, e.g. sqlite,postgresql,mariadb,redis")
    parser.add_argument("--output", type=Path, help="where the tables go (bench/results.md; nowhere with --quick)")
    parser.add_argument("--quick", action="store_true", help="one short run of each, to see that everything works")
    given = parser.parse_args(argv)
    for name in given.names:
        if name not in known:
            parser.error(f"no benchmark is called {name!r}. There are: {', '.join(known)}.")
    streams, rate, seconds, runs = ((100,), 20.0, 3.0, 1) if given.quick else ((100, 1000, 9000), 20.0, 5.0, 3)
    options = Options(
        names=tuple(given.names) or known,
        streams=streams if given.streams is None else given.streams,
        rate=rate if given.rate is None else given.rate,
        seconds=seconds if given.seconds is None else given.seconds,
        runs=runs if given.runs is None else given.runs,
        quick=given.quick,
        peers=given.peers,
        servers=given.servers,
        lanes=given.lanes,
        engines=_words(given.engines.lower()),
        output=given.output or (None if given.quick else RESULTS),
    )
    for name in ("rate", "seconds", "runs"):
        if getattr(options, name) <= 0:
            parser.error(f"--{name} must be more than 0, not {getattr(options, name)}.")
    if not options.streams or min(options.streams) <= 0:
        parser.error(f"--streams must be numbers above 0, not {options.streams}.")
    return options

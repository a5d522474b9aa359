"""What a run is asked to do."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "bench" / "results.md"


@dataclass(frozen=True, kw_only=True)
class Options:
    """One run's parameters. Seconds are of measuring, without warm-up."""

    names: tuple[str, ...]
    streams: int = 1000
    rate: float = 20.0
    seconds: float = 8.0
    runs: int = 3
    quick: bool = False
    peers: tuple[str, ...] = ()
    engines: tuple[str, ...] = ()
    output: Path | None = RESULTS

    def wants(self, peer: str) -> bool:
        """Whether this peer is to be measured."""
        return not self.peers or peer in self.peers

    def wants_engine(self, name: str) -> bool:
        """Whether this engine is to be measured."""
        return not self.engines or name.lower() in self.engines


def parse(argv: list[str], known: tuple[str, ...]) -> Options:
    """Read the command line. ``known`` are the names of the benchmarks."""
    parser = argparse.ArgumentParser(prog="python -m bench", description="Measure this project beside its peers.")
    parser.add_argument("names", nargs="*", metavar="name", help=f"which to run: {', '.join(known)} (default: all)")
    parser.add_argument("--streams", type=int, help="open streams in fanout (1000)")
    parser.add_argument("--rate", type=float, help="events per second in fanout and latency (20)")
    parser.add_argument("--seconds", type=float, help="seconds each fanout window lasts (8)")
    parser.add_argument("--runs", type=int, help="runs of each case (3); the median is reported")
    parser.add_argument("--peers", default="", help="only these, comma-separated")
    parser.add_argument("--engines", default="", help="only these, e.g. sqlite,postgresql,mariadb,redis")
    parser.add_argument("--output", type=Path, help="where the tables go (bench/results.md; nowhere with --quick)")
    parser.add_argument("--quick", action="store_true", help="one short run of each, to see that everything works")
    given = parser.parse_args(argv)
    for name in given.names:
        if name not in known:
            parser.error(f"no benchmark is called {name!r}. There are: {', '.join(known)}.")
    base = {"streams": 1000, "rate": 20.0, "seconds": 8.0, "runs": 3}
    if given.quick:
        base = {"streams": 100, "rate": 20.0, "seconds": 3.0, "runs": 1}
    chosen = {name: base[name] if getattr(given, name) is None else getattr(given, name) for name in base}
    for name, value in chosen.items():
        if value <= 0:
            parser.error(f"--{name} must be more than 0, not {value}.")
    return Options(
        names=tuple(given.names) or known,
        streams=int(chosen["streams"]),
        rate=float(chosen["rate"]),
        seconds=float(chosen["seconds"]),
        runs=int(chosen["runs"]),
        quick=given.quick,
        peers=tuple(part.strip() for part in given.peers.split(",") if part.strip()),
        engines=tuple(part.strip().lower() for part in given.engines.split(",") if part.strip()),
        output=given.output or (None if given.quick else RESULTS),
    )

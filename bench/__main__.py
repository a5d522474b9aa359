"""``python -m bench [name…]``: run the benchmarks and write their tables."""

from __future__ import annotations

import signal
import sys
import time
from typing import TYPE_CHECKING

from bench import engine_publish, engines, fanout, idle, latency, machine, options, publish, report, resume, retention
from bench.peers import PEERS
from bench.process import BenchError, server_core

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

BENCHMARKS: dict[str, Callable[[options.Options], list[report.Table]]] = {
    "publish": publish.run,
    "engines": engine_publish.run,
    "latency": latency.run,
    "resume": resume.run,
    "idle": idle.run,
    "retention": retention.run,
    "fanout": fanout.run,
}


def _stop(signum: int, frame: FrameType | None) -> None:
    # As an exception, so that every server is ended on the way out.
    raise KeyboardInterrupt


def main(argv: list[str]) -> int:
    """Run what was asked for. Returns the exit status."""
    known = tuple(BENCHMARKS)
    chosen = options.parse(argv, known)
    signal.signal(signal.SIGTERM, _stop)
    about = machine.describe()
    core = server_core()
    about += f"\n- Engines: {engines.versions()}; private servers on the same machine"
    about += f"\n- Web server: one uvicorn process, loop {core['loop']}, parser {core['http']}, the same for every peer"
    machine.pin_self_to_load_core()
    missing = [peer.name for peer in PEERS if not peer.installed()]
    if missing:
        print(f"Not installed, so not measured: {', '.join(missing)}.")
    sections = []
    try:
        for name in known:
            if name in chosen.names:
                print(f"{name}:", flush=True)
                start = time.monotonic()
                tables = BENCHMARKS[name](chosen)
                command = " ".join(["python -m bench", *argv])
                section = report.Section(name=name, command=command, runs=chosen.runs, machine=about, tables=tables)
                sections.append(section)
                print(f"\n{section.markdown()}\n{name} took {time.monotonic() - start:.0f} s.\n", flush=True)
                if chosen.output:
                    report.write(sections, chosen.output, known)
    except KeyboardInterrupt:
        print("Stopped.", file=sys.stderr)
        return 130
    except (BenchError, OSError, TimeoutError, EOFError) as error:
        print(f"Failed: {str(error) or type(error).__name__}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

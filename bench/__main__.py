"""``python -m bench [name…]``: run the benchmarks and write their tables."""

from __future__ import annotations

import signal
import sys
import time
from typing import TYPE_CHECKING

from bench import (
    burst,
    churn,
    connect,
    contenders,
    engine_publish,
    engines,
    fanout,
    idle,
    latency,
    machine,
    nchan,
    options,
    page,
    plot,
    publish,
    report,
    resume,
    retention,
    stalled,
    targets,
)
from bench.process import BenchError
from bench.servers import fast_parts

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from types import FrameType

BENCHMARKS: dict[str, Callable[[options.Options], list[report.Table]]] = {
    "publish": publish.run,
    "engines": engine_publish.run,
    "latency": latency.run,
    "resume": resume.run,
    "idle": idle.run,
    "retention": retention.run,
    "fanout": fanout.run,
    "burst": burst.run,
    "connect": connect.run,
    "stalled": stalled.run,
    "churn": churn.run,
    "page": page.run,
}
#: Its section is made of the others' figures.
TARGETS = "targets"
#: Its figures are drawn.
PICTURED = "fanout"


def _stop(signum: int, frame: FrameType | None) -> None:
    # As an exception, so that every server is ended on the way out.
    raise KeyboardInterrupt


class _Results:
    """What is printed, and written where a file is wanted, benchmark by benchmark."""

    def __init__(self, chosen: options.Options, command: str, about: str) -> None:
        self._chosen = chosen
        self._command = command
        self._about = about
        self._sections: list[report.Section] = []
        self.figures: dict[report.Figure, list[float]] = {}

    def add(self, name: str, tables: list[report.Table], *, keep: bool = True) -> None:
        """Show a benchmark's tables; ``keep``: put them into the file, if there is one."""
        for table in tables:
            self.figures.update(table.figures)
        output = self._chosen.output if keep else None
        section = report.Section(
            name=name,
            command=self._command,
            runs=self._chosen.runs,
            machine=self._about,
            tables=tables,
            picture=self._draw(output) if output and name == PICTURED else "",
        )
        print(f"\n{section.markdown()}", flush=True)
        if output:
            self._sections.append(section)
            report.write(self._sections, output, (*BENCHMARKS, TARGETS))

    def _draw(self, output: Path) -> str:
        picture = output.with_suffix(".svg")
        rates = {count: self._chosen.rate_for(count) for count in self._chosen.streams}
        about = f"One server process on one core, median of {self._chosen.runs} runs. Less is better."
        plot.write(self.figures, rates, about, picture)
        return picture.name


def _about() -> str:
    """What is measured on, with what, in Markdown."""
    parts = fast_parts()
    return (
        f"{machine.describe()}\n- Engines: {engines.versions()}; private servers on the same machine\n"
        f"- uvicorn with {parts['loop']} and {parts['http']}, the same for every peer; {nchan.versions()}"
    )


def main(argv: list[str]) -> int:
    """Run what was asked for. Returns the exit status."""
    chosen = options.parse(argv, tuple(BENCHMARKS))
    signal.signal(signal.SIGTERM, _stop)
    results = _Results(chosen, " ".join(["python -m bench", *argv]), _about())
    machine.pin_self_to_load_core()
    if missing := contenders.missing():
        print(f"Not installed, so not measured: {', '.join(missing)}.")
    try:
        for name, benchmark in BENCHMARKS.items():
            if name in chosen.names:
                print(f"{name}:", flush=True)
                start = time.monotonic()
                results.add(name, benchmark(chosen))
                print(f"{name} took {time.monotonic() - start:.0f} s.\n", flush=True)
        if results.figures:
            # A file that has all targets shall not lose those that did not run now.
            results.add(TARGETS, [targets.table(results.figures)], keep=targets.complete(results.figures))
    except KeyboardInterrupt:
        print("Stopped.", file=sys.stderr)
        return 130
    except (BenchError, OSError, TimeoutError, EOFError) as error:
        print(f"Failed: {str(error) or type(error).__name__}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""What the figures shall be, as ratios between figures of one run."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bench.contenders import Contender
from bench.peers import DIRECT, EVENTSTREAM, NCHAN, OURS, by_name
from bench.report import Figure, Table
from bench.servers import NGINX, UVICORN
from bench.stats import median, number

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_OURS = Contender(by_name(OURS), UVICORN, DIRECT).name
_NCHAN = Contender(by_name(NCHAN), NGINX).name
_EVENTSTREAM = Contender(by_name(EVENTSTREAM), UVICORN).name


@dataclass(frozen=True, kw_only=True)
class Target:
    """One figure, or its ratio to another one, and the most that it may be. ``unit`` is that of the figures."""

    text: str
    figure: Figure
    beside: Figure | None = None
    limit: float
    shown: str = ""
    unit: str

    def row(self, figures: Mapping[Figure, Sequence[float]]) -> tuple[str, ...]:
        """The target's row. It is neither met nor missed where a figure is missing."""
        value = median(figures.get(self.figure, ()))
        taken = f"{number(value)} {self.unit}"
        if self.beside is not None:
            base = median(figures.get(self.beside, ()))
            taken += f" beside {number(base)} {self.unit}"
            value = value / base if base else math.nan
        verdict = "not measured" if math.isnan(value) else "met" if value <= self.limit else "missed"
        return self.text, number(value), f"at most {self.shown or f'{self.limit:g}'}", verdict, taken


TARGETS = (
    Target(
        text="CPU per event beside nchan, 1,000 streams",
        figure=Figure("cpu", _OURS, 1000),
        beside=Figure("cpu", _NCHAN, 1000),
        limit=1.25,
        unit="µs",
    ),
    Target(
        text="the same without publishing",
        figure=Figure("alone", _OURS, 1000),
        beside=Figure("alone", _NCHAN, 1000),
        limit=1.25,
        unit="µs",
    ),
    Target(
        text="CPU per event of bursts beside nchan",
        figure=Figure("burst", _OURS),
        beside=Figure("burst", _NCHAN),
        limit=1.0,
        unit="µs",
    ),
    *(
        Target(
            text=f"memory per idle stream beside nchan, {streams:,} streams",
            figure=Figure("memory", _OURS, streams),
            beside=Figure("memory", _NCHAN, streams),
            limit=0.8,
            unit="KiB",
        )
        for streams in (1000, 9000)
    ),
    Target(
        text="CPU per event beside django-eventstream, 1,000 streams",
        figure=Figure("cpu", _OURS, 1000),
        beside=Figure("cpu", _EVENTSTREAM, 1000),
        limit=1 / 7,
        shown="1/7 (0.14)",
        unit="µs",
    ),
    Target(
        text="CPU per event with 9,000 streams beside 100",
        figure=Figure("cpu", _OURS, 9000),
        beside=Figure("cpu", _OURS, 100),
        limit=1.3,
        unit="µs",
    ),
    Target(
        text="the same without publishing",
        figure=Figure("alone", _OURS, 9000),
        beside=Figure("alone", _OURS, 100),
        limit=1.3,
        unit="µs",
    ),
    Target(
        text="p99 beside nchan, 9,000 streams",
        figure=Figure("p99", _OURS, 9000),
        beside=Figure("p99", _NCHAN, 9000),
        limit=1.3,
        unit="ms",
    ),
    Target(
        text="CPU per connect beside django-eventstream",
        figure=Figure("connect", _OURS),
        beside=Figure("connect", _EVENTSTREAM),
        limit=0.6,
        unit="µs",
    ),
    Target(
        text="p99 beside a stalled client, of p99 without",
        figure=Figure("stalled", _OURS),
        limit=1.1,
        unit="×",
    ),
    Target(
        text="memory grown after 10,000 connects, MB",
        figure=Figure("churn", _OURS),
        limit=2.0,
        shown="2 MB",
        unit="MB",
    ),
)


def complete(figures: Mapping[Figure, Sequence[float]]) -> bool:
    """Whether a run has everything that the targets are about."""
    return all(
        not math.isnan(median(figures.get(name, ())))
        for target in TARGETS
        for name in (target.figure, target.beside)
        if name is not None
    )


def table(figures: Mapping[Figure, Sequence[float]]) -> Table:
    """The targets beside one run's medians."""
    return Table(
        title="Targets: the direct lane on uvicorn",
        columns=("what", "figure", "target", "met or missed", "made of"),
        note="Medians of the runs; all of them from this one run of the benchmarks.",
        rows=[target.row(figures) for target in TARGETS],
    )

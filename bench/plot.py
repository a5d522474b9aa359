"""The picture of the fan-out figures: one SVG, for light and dark pages."""

from __future__ import annotations

import math
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING

from bench.peers import BARE, DIRECT, OURS, RESPONSE
from bench.report import Figure
from bench.stats import median, number

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

WIDTH = 960
MARGIN = 28
#: Of the column of names, of both panels, and between them.
NAMES, CPU, MEMORY, GAP = 262, 372, 200, 70
TOP = 112
BAR, BAR_GAP, ROW_GAP = 9, 3, 12

STYLE = """
.card { fill: #ffffff; stroke: #d8dee4; }
text { font: 12px system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; fill: #1f2328; }
.title { font-size: 17px; font-weight: 650; }
.head { font-weight: 600; }
.dim { fill: #59636e; }
.ours { font-weight: 600; }
.value { font-size: 10.5px; font-variant-numeric: tabular-nums; }
.grid { stroke: #d8dee4; stroke-width: 1; }
.direct { fill: #0969da; }
.response { fill: #1a9c94; }
.other { fill: #8c959f; }
.floor { fill: none; stroke: #8c959f; stroke-dasharray: 3 2; }
.cut { stroke: #ffffff; stroke-width: 2.5; }
@media (prefers-color-scheme: dark) {
  .card { fill: #0d1117; stroke: #3d444d; }
  text { fill: #f0f6fc; }
  .dim { fill: #9198a1; }
  .grid { stroke: #2a313c; }
  .direct { fill: #58a6ff; }
  .response { fill: #3fb8af; }
  .other { fill: #6e7681; }
  .floor { stroke: #6e7681; }
  .cut { stroke: #0d1117; }
}
"""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One contender: CPU by number of streams, memory with the number in the middle."""

    who: str
    server: str
    cpu: dict[int, float]
    memory: float

    @property
    def kind(self) -> str:
        """Which colour it has."""
        if self.who == BARE:
            return "floor"
        if not self.who.startswith(OURS):
            return "other"
        return DIRECT if DIRECT in self.who else RESPONSE


def _rows(figures: Mapping[Figure, Sequence[float]], counts: Sequence[int], middle: int) -> list[Row]:
    names = dict.fromkeys(figure.who for figure in figures if figure.what == "cpu")
    rows = []
    for name in names:
        who, _, server = name.rpartition(", ")
        cpu = {count: median(figures.get(Figure("cpu", name, count), ())) for count in counts}
        rows.append(
            Row(who=who, server=server, cpu=cpu, memory=median(figures.get(Figure("memory", name, middle), ())))
        )
    return sorted(rows, key=lambda row: (math.isnan(row.cpu[middle]), row.cpu[middle]))


def _scale(values: Sequence[float]) -> tuple[float, float]:
    """The end of an axis and its step. What is far beyond most of the others is cut there."""
    known = sorted(value for value in values if not math.isnan(value))
    if not known:
        return 1.0, 1.0
    most = known[-1]
    # Bars that are a few pixels long, because one is twenty times as long, compare nothing.
    bound = min(most, 4 * known[len(known) // 2])
    step = 10 ** math.floor(math.log10(bound))
    step *= next(factor for factor in (0.2, 0.5, 1, 2, 5) if bound / (step * factor) <= 6)
    return math.ceil(bound / step) * step, step


class _Drawing:
    def __init__(self) -> None:
        self.parts: list[str] = []

    def text(self, x: float, y: float, text: str, kind: str = "", anchor: str = "start") -> None:
        self.parts.append(f'<text x="{x:.1f}" y="{y:.1f}" class="{kind}" text-anchor="{anchor}">{escape(text)}</text>')

    def axis(self, x: float, width: float, bottom: float, end: float, step: float) -> None:
        for index in range(round(end / step) + 1):
            at = x + width * index * step / end
            self.parts.append(f'<line class="grid" x1="{at:.1f}" x2="{at:.1f}" y1="{TOP - 6}" y2="{bottom:.1f}"/>')
            self.text(at, TOP - 12, f"{index * step:g}", "dim value", "middle")

    def bar(self, x: float, y: float, width: float, value: float, end: float, row: Row, opacity: float) -> None:
        if math.isnan(value):
            self.text(x + 4, y + BAR - 1, "–", "dim value")
            return
        length = max(1.0, min(1.0, value / end) * width)
        inset = 0.5 if row.kind == "floor" else 0.0
        self.parts.append(
            f'<rect class="{row.kind}" x="{x + inset:.1f}" y="{y + inset:.1f}" width="{length - 2 * inset:.1f}" '
            f'height="{BAR - 2 * inset:.1f}" rx="1.5" opacity="{opacity:.2f}"/>'
        )
        if value > end:
            at = x + length - 12
            self.parts.append(f'<line class="cut" x1="{at:.1f}" x2="{at + 4:.1f}" y1="{y + BAR + 1}" y2="{y - 1}"/>')
        self.text(x + length + 5, y + BAR - 0.75, number(value), "value" + ("" if opacity == 1 else " dim"))


def draw(figures: Mapping[Figure, Sequence[float]], rates: Mapping[int, float], about: str) -> str:
    """
    The picture as SVG. ``rates`` says how many events a second so many streams had; ``about`` stands below the title.
    """
    counts = sorted(rates)
    middle = max((count for count in counts if count <= 1000), default=counts[0])
    rows = _rows(figures, counts, middle)
    row_height = len(counts) * (BAR + BAR_GAP) + ROW_GAP
    bottom = TOP + len(rows) * row_height
    height = bottom + 52
    cpu_x, memory_x = MARGIN + NAMES, MARGIN + NAMES + CPU + GAP
    cpu_end, cpu_step = _scale([value for row in rows for value in row.cpu.values()])
    memory_end, memory_step = _scale([row.memory for row in rows])

    drawing = _Drawing()
    drawing.text(MARGIN, 36, "What a delivered event and an idle stream cost", "title")
    drawing.text(MARGIN, 56, about, "dim")
    drawing.text(cpu_x, 82, "CPU per delivered event, µs", "head")
    drawing.text(memory_x, 82, "Memory per idle stream, KiB", "head")
    drawing.axis(cpu_x, CPU, bottom - ROW_GAP / 2, cpu_end, cpu_step)
    drawing.axis(memory_x, MEMORY, bottom - ROW_GAP / 2, memory_end, memory_step)
    for index, row in enumerate(rows):
        top = TOP + index * row_height
        center = top + (len(counts) * (BAR + BAR_GAP) - BAR_GAP) / 2
        ours = "ours" if row.kind in (DIRECT, RESPONSE) else ""
        drawing.text(cpu_x - 14, center - 2, row.who, ours, "end")
        drawing.text(cpu_x - 14, center + 11, row.server, "dim value", "end")
        for place, count in enumerate(counts):
            opacity = 1.0 if count == middle else 0.5
            drawing.bar(cpu_x, top + place * (BAR + BAR_GAP), CPU, row.cpu[count], cpu_end, row, opacity)
        drawing.bar(memory_x, center - BAR / 2, MEMORY, row.memory, memory_end, row, 1.0)
    loads = ", ".join(f"{count:,} streams × {rates[count]:g}/s" for count in counts)
    drawing.text(MARGIN, bottom + 18, f"CPU, from above: {loads}. Memory: {middle:,} streams. –: not measured.", "dim")
    notes = ["Dashed: no library at all, the floor of one task per stream on uvicorn."]
    if any(value > cpu_end for row in rows for value in row.cpu.values()):
        notes.append("A cut bar is longer than the axis.")
    drawing.text(MARGIN, bottom + 35, " ".join(notes), "dim")
    said = "; ".join(
        f"{row.who} on {row.server}: {number(row.cpu[middle])} µs, {number(row.memory)} KiB" for row in rows
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:.0f}" width="{WIDTH}" '
        f'height="{height:.0f}" role="img" aria-labelledby="title said">\n'
        f'<title id="title">CPU per delivered event and memory per idle stream</title>\n'
        f'<desc id="said">With {middle:,} streams. {escape(said)}</desc>\n<style>{STYLE}</style>\n'
        f'<rect class="card" x="0.5" y="0.5" width="{WIDTH - 1}" height="{height - 1:.0f}" rx="8"/>\n'
        + "\n".join(drawing.parts)
        + "\n</svg>\n"
    )


def write(figures: Mapping[Figure, Sequence[float]], rates: Mapping[int, float], about: str, output: Path) -> None:
    """Draw the picture into a file."""
    output.write_text(draw(figures, rates, about), encoding="utf-8")

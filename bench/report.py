"""Tables, and the file they go to."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from pathlib import Path

HEAD = """# Results

Written by `python -m bench`; what each figure is and how it is taken: [README.md](README.md). A figure is the median of
the runs, with the lowest and highest in brackets. Ratios travel between machines, absolute figures do not.
"""


class Figure(NamedTuple):
    """The name of a figure: what was measured, of whom, with how many streams where that matters."""

    what: str
    who: str
    streams: int = 0


@dataclass(kw_only=True)
class Table:
    """One table of results. ``note`` stands below it; ``figures``, one number of each run, is for other tables."""

    title: str
    columns: tuple[str, ...]
    note: str = ""
    rows: list[tuple[str, ...]] = field(default_factory=list)
    figures: dict[Figure, list[float]] = field(default_factory=dict)

    def markdown(self) -> str:
        """The table as Markdown, with aligned columns."""
        lines = [self.columns, *self.rows]
        widths = [max(len(line[index]) for line in lines) for index in range(len(self.columns))]
        text = ["| " + " | ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)) + " |" for line in lines]
        text.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
        body = "\n".join(text) if self.rows else "Nothing was measured: not installed, or not asked for."
        return f"### {self.title}\n\n{body}\n\n{self.note}\n"


@dataclass(kw_only=True)
class Section:
    """One benchmark's tables, and what they were measured with. ``picture`` names a file beside the results."""

    name: str
    command: str
    runs: int
    machine: str
    tables: list[Table]
    picture: str = ""
    when: str = field(default_factory=lambda: datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"))

    def markdown(self) -> str:
        """The section as Markdown."""
        facts = f"- `{self.command}`, {self.when}, {self.runs} runs\n{self.machine}\n"
        if self.picture:
            facts += f"\n![The figures of {self.name} as bars]({self.picture})\n"
        return f"## {self.name}\n\n{facts}\n" + "\n".join(table.markdown() for table in self.tables)


def _kept(output: Path) -> dict[str, str]:
    """The sections that stand in a file, by name, as they are."""
    try:
        text = output.read_text(encoding="utf-8")
    except OSError:
        return {}
    parts = re.split(r"^## (\S+)$\n", text, flags=re.MULTILINE)
    return {name: f"## {name}\n{body.rstrip()}\n" for name, body in zip(parts[1::2], parts[2::2], strict=True)}


def write(sections: list[Section], output: Path, order: tuple[str, ...]) -> None:
    """Put these sections into ``output``; those of benchmarks that did not run now stay in it as they are."""
    found = {**_kept(output), **{section.name: section.markdown().rstrip() + "\n" for section in sections}}
    output.write_text("\n".join([HEAD, *(found[name] for name in order if name in found)]), encoding="utf-8")

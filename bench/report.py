"""Tables, and the file they go to."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

from bench.options import RESULTS, ROOT

if TYPE_CHECKING:
    from pathlib import Path

# What earlier runs found, so that running one benchmark does not lose the tables of the others.
STORE = ROOT / "var" / "bench" / "sections.json"

HEAD = """# Results

Written by `python -m bench`; what each figure is and how it is taken: [README.md](README.md). A figure is the median of
the runs, with the lowest and highest in brackets. Ratios travel between machines, absolute figures do not.
"""


@dataclass(kw_only=True)
class Table:
    """One table of results. ``note`` stands below it."""

    title: str
    columns: tuple[str, ...]
    note: str = ""
    rows: list[tuple[str, ...]] = field(default_factory=list)

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
    """One benchmark's tables, and what they were measured with."""

    name: str
    command: str
    runs: int
    machine: str
    tables: list[Table]
    when: str = field(default_factory=lambda: datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"))

    def markdown(self) -> str:
        """The section as Markdown."""
        facts = f"- `{self.command}`, {self.when}, {self.runs} runs\n{self.machine}\n"
        return f"## {self.name}\n\n{facts}\n" + "\n".join(table.markdown() for table in self.tables)


def _stored() -> dict[str, Any]:
    try:
        found = json.loads(STORE.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def write(sections: list[Section], output: Path, order: tuple[str, ...]) -> None:
    """
    Put these sections into ``output``.

    Where that is results.md, the stored ones of benchmarks that did not run now stay in it.
    """
    stored = _stored() if output == RESULTS else {}
    stored.update({section.name: asdict(section) for section in sections})
    if output == RESULTS:
        STORE.parent.mkdir(parents=True, exist_ok=True)
        STORE.write_text(json.dumps(stored, indent=1), encoding="utf-8")
    parts = [HEAD]
    for name in order:
        if name in stored:
            raw = stored[name]
            tables = [
                Table(
                    title=table["title"],
                    columns=tuple(table["columns"]),
                    note=table["note"],
                    rows=[tuple(row) for row in table["rows"]],
                )
                for table in raw["tables"]
            ]
            parts.append(Section(**{**raw, "tables": tables}).markdown())
    output.write_text("\n".join(parts), encoding="utf-8")

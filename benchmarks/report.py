"""What a benchmark found, as tables and as JSON."""

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any, final

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.setting import Asked
from experiments.records import hardware
from stagetrace.results.files import write_text
from stagetrace.results.jsonable import json_text
from stagetrace.results.manifest import versions

Row = dict[str, Any]


@final
@dataclass
class Report:
    """Filled in as a benchmark goes: a table is drawn when it is added, the file is written at the end."""

    name: str
    asked: Asked
    console: Console = field(default_factory=lambda: Console(width=None if sys.stdout.isatty() else 130))
    fields: dict[str, Any] = field(default_factory=dict[str, Any])
    targets: list[Row] = field(default_factory=list[Row])
    load_before: tuple[float, ...] = field(default_factory=lambda: os.getloadavg())

    def say(self, line: str) -> None:
        self.console.print(line, highlight=False)

    def table(self, title: str, rows: Sequence[Row], key: str) -> None:
        """Draw the rows, whose keys are the columns' names, and keep them under `key`."""
        columns = list(dict.fromkeys(column for row in rows for column in row))
        drawn = Table(title=title, title_justify="left")
        for column in columns:
            numeric = any(isinstance(row.get(column), (int, float)) for row in rows)
            drawn.add_column(column, justify="right" if numeric else "left")
        for row in rows:
            drawn.add_row(*(_cell(row.get(column)) for column in columns))
        self.console.print(drawn)
        self.fields[key] = list(rows)

    def target(self, what: str, reached: float, at_most: float) -> None:
        """A number that was promised, beside what was found."""
        met = reached <= at_most
        self.targets.append({"what": what, "reached": reached, "at_most": at_most, "met": met})
        self.say(f"{'met' if met else 'MISSED'}: {what}: {reached:.3g} (target: at most {at_most:g})")

    def write(self, path: Path) -> None:
        """Everything in one file; what it ran on and how busy that was stand at its end."""
        whole = {
            "benchmark": self.name,
            "date": date.today().isoformat(),
            "asked": self.asked.plain(),
            "targets": self.targets,
            **self.fields,
            "versions": {**versions(), "numpy": version("numpy")},
            "hardware": hardware(self.asked.device),
            "interop_threads": torch.get_num_interop_threads(),
            "load_average_before_and_after": [list(self.load_before), list(os.getloadavg())],
        }
        write_text(path, json_text(whole, path.name))


def _cell(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)

"""What the commands print."""

from collections.abc import Iterable
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from stagetrace.preflight import Finding, Level
from stagetrace.results import Trace
from stagetrace.stages.chain import Chain

STYLES = {Level.OK: "green", Level.NOTE: "cyan", Level.WARNING: "bold yellow"}


def result(trace: Trace, top: int, console: Console, out: Path) -> None:
    """The summary table, the most harmful and most helpful examples of each stage, and where it all is."""
    console.print(_legible(trace.sheet().rich(), console.width))
    if top:
        for scores in trace.scores.values():
            console.print(scores.top(top, harmful=True))
            console.print(scores.top(top, harmful=False))
    console.print(f"kept in {out}", markup=False, soft_wrap=True)


def findings(chain: Chain, found: Iterable[Finding], console: Console) -> None:
    """A line per finding, and a verdict."""
    console.print(f"{chain}", markup=False, highlight=False)
    table = Table(box=None, pad_edge=False)
    for heading in ("stage", "what", "level", "found"):
        table.add_column(heading, overflow="fold")
    warned = 0
    try:
        for finding in found:
            warned += finding.level is Level.WARNING
            table.add_row(
                finding.where, finding.what, Text(finding.level.value, style=STYLES[finding.level]), Text(finding.text)
            )
    finally:  # what was found stands, also where a later check refuses
        console.print(_legible(table, console.width))
    console.print(
        f"{warned} warning{'s' if warned != 1 else ''}" if warned else "nothing stands in the way", markup=False
    )


def _legible(table: Table, width: int) -> Table:
    """The table without broken words, if the console is wide enough for the longest of each column."""
    longest = [
        max(len(word) for cell in (column.header, *column.cells) for word in str(cell).split() or [""])
        for column in table.columns
    ]
    for padding in (1, 0):
        if sum(longest) + (2 * padding + 1) * len(longest) < width:
            table.padding = (0, padding)
            for column, least in zip(table.columns, longest, strict=True):
                column.min_width = least
            break
    return table

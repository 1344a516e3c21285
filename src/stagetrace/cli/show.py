"""What the commands print."""

from collections.abc import Iterable, Mapping
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from stagetrace.cli.fits import in_words
from stagetrace.preflight import Finding, Level
from stagetrace.results import Trace
from stagetrace.stages.chain import Chain
from stagetrace.validation import Fit, Validation, report

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


def validation(
    found: Validation, fitted: Mapping[str, Fit], left_out: Mapping[str, str], console: Console, files: list[Path]
) -> None:
    """The agreement of every estimator for each choice of removals, what was done, and where it all is."""
    for sheet in report.sheets(found):
        console.print(_legible(sheet.rich(), console.width))
    for name, reason in left_out.items():
        console.print(f"{name} does not apply: {reason}", markup=False, highlight=False)
    for name, fit in fitted.items():
        console.print(f"stage '{name}' was trained again by {in_words(fit)}", markup=False, highlight=False)
    for words in (report.SIGN, report.FIGURES, report.work(found)):
        console.print(words, markup=False, highlight=False)
    console.print(f"kept in {', '.join(map(str, files))}", markup=False, soft_wrap=True)


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

"""From a run's folder to its report."""

from dataclasses import replace
from pathlib import Path

from stagetrace.errors import refuse
from stagetrace.report.attachments import Attachments
from stagetrace.report.collect import collect
from stagetrace.report.model import Report
from stagetrace.report.previews import read_previews, write_previews
from stagetrace.report.render import render
from stagetrace.results import Trace
from stagetrace.results.files import write_text
from stagetrace.stages.chain import Chain
from stagetrace.tracing.query import Query

NAME = "report.html"


def write(
    folder: str | Path,
    chain: Chain | None = None,
    query: Query | None = None,
    *,
    out: str | Path | None = None,
    command: str = "",
) -> Path:
    """Write the report of a complete run: one file that needs no network and no other file.

    Args:
        folder: of the run.
        chain, query: those of the run; with them the previews of the examples are made anew and kept with the run.
            Without them the report shows the previews kept before, or indices alone.
        out: the file; None writes `report.html` in the folder.
        command: what was typed to make the run; kept with the previews, and said in the report.

    Returns:
        The file.

    Raises:
        DescriptionError: one of chain and query without the other, or those of another run.
        ResultsError: the folder holds no complete run, a file in it is damaged, or the file system refused.

    Example:
        >>> from stagetrace import report
        >>> report.write("runs/digits", chain, query)  # doctest: +SKIP
        PosixPath('runs/digits/report.html')
    """
    if (chain is None) != (query is None):
        refuse("report.write: chain and query come together, got one of them; give both, or neither")
    place = Path(folder)
    trace = Trace.load(place)
    if chain is not None and query is not None:
        made = collect(trace, chain, query)
        before = read_previews(place)
        typed = command or (before.facts.get("command", "") if before is not None else "")
        write_previews(place, replace(made, facts={**made.facts, "command": typed}))
    report = Report.of(trace, read_previews(place), Attachments.read(place, trace.statistics.get("checks")))
    path = Path(out) if out is not None else place / NAME
    write_text(path, render(report))
    return path

"""`stagetrace export`: the scores of a stage for another tool."""

from pathlib import Path
from typing import Annotated

import typer

from stagetrace.cli import options
from stagetrace.errors import refuse

__all__ = ["export_run"]


def export_run(
    folder: options.Folder,
    kind: Annotated[str, typer.Option("--format", metavar="NAME", help=f"{', '.join(options.EXPORTS)}.")],
    out: Annotated[
        Path, typer.Option("--out", metavar="PATH", help="A file for csv and numpy, a new folder for the tools.")
    ],
    stage: Annotated[
        str | None, typer.Option("--stage", metavar="STAGE", help="Whose scores (default: the first stage).")
    ] = None,
    debug: options.Debug = False,
) -> None:
    """Write a stage's scores for another tool, in its format and with its sign, and state that sign."""
    del debug

    from stagetrace.export import export
    from stagetrace.results import Trace
    from stagetrace.terminal import terminal

    trace = Trace.load(folder)
    if not len(trace):
        refuse(f"{folder}: no stage of this run has scores; trace it again with --of STAGE")
    scores = trace[next(iter(trace)) if stage is None else stage]
    written, console = export(scores, kind, out), terminal()
    for line in (f"stage '{scores.stage}': {written.sign}", f"saved to {', '.join(map(str, written.files))}"):
        console.print(line, highlight=False, soft_wrap=True)

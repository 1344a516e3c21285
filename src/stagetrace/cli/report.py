"""`stagetrace report`: one HTML file from a run's folder."""

import shlex
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from stagetrace.cli import options
from stagetrace.errors import StagetraceError, StagetraceWarning

if TYPE_CHECKING:
    from stagetrace.stages.chain import Chain
    from stagetrace.tracing.query import Query

__all__ = ["report", "write_after"]


def report(
    folder: options.Folder,
    target: Annotated[
        str | None,
        typer.Option("--target", metavar="TARGET", help="The run's target: previews its examples again."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="Where to write it (default: DIR/report.html).")
    ] = None,
    debug: options.Debug = False,
) -> None:
    """Write a run's report: one HTML file that needs no network and no other file."""
    del debug

    from stagetrace.cli.target import load
    from stagetrace.report import write
    from stagetrace.terminal import terminal

    job = None if target is None else load(target)
    path = write(folder, job and job.chain, job and job.query, out=out)
    terminal().print(f"wrote {path}", highlight=False, soft_wrap=True)


def write_after(folder: Path, chain: "Chain", query: "Query") -> Path | None:
    """The report of a run that has just ended. Whatever happens to it, the run stands: problems become warnings."""
    from stagetrace.report import write

    try:
        return write(folder, chain, query, command=f"stagetrace {shlex.join(sys.argv[1:])}")
    except StagetraceError as cause:
        warnings.warn(
            f"the run is complete, but its report was not written: {cause}; once that is fixed, type: "
            f"stagetrace report {folder} --target TARGET",
            StagetraceWarning,
            stacklevel=2,
        )
        return None

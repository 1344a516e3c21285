"""`stagetrace show`: a saved run in the terminal."""

from typing import Annotated

import typer

from stagetrace.cli import options
from stagetrace.errors import refuse

__all__ = ["show_run"]


def show_run(
    folder: options.Folder,
    stage: Annotated[
        str | None,
        typer.Option("--stage", metavar="STAGE", help="Only this stage's examples (default: all)."),
    ] = None,
    query: Annotated[
        int | None,
        typer.Option("--query", metavar="K", min=0, help="Rank for query example K; needs a run of reduction 'none'."),
    ] = None,
    top: Annotated[int, typer.Option("--top", metavar="N", min=1, help="Rows of the most harmful and helpful.")] = 10,
    debug: options.Debug = False,
) -> None:
    """Show a saved run or ranking: its summary, and the most harmful and most helpful examples."""
    del debug

    from stagetrace.cli import show
    from stagetrace.report.previews import read_previews
    from stagetrace.results import Trace, read_rankings
    from stagetrace.results.rankings import RECORD
    from stagetrace.terminal import terminal

    console = terminal()
    if (folder / RECORD).exists():
        found = read_rankings(folder)
        if stage is not None and stage not in found:
            refuse(f"{folder}: no ranking of a stage '{stage}'; it has {', '.join(found)}")
        show.rankings({name: found[name] for name in (found if stage is None else [stage])}, top, console, query or 0)
        return
    trace = Trace.load(folder)
    shown = list(trace.scores.values()) if stage is None else [trace[stage]]
    previews = read_previews(folder)
    show.summary(trace, console, folder)
    if query is not None and previews is not None:
        show.question(previews, query, console)
    for scores in shown:
        show.ranking(scores, top, console, previews, query)
        show.token_ranking(trace.tokens.get(scores.stage), top, console, previews, query)

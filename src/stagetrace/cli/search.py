"""`stagetrace search`: one query against an index, its candidates scored exactly."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stagetrace.cli import options
from stagetrace.errors import refuse

if TYPE_CHECKING:
    from stagetrace.index import Hits

__all__ = ["search_index"]

SHOWN = 3
"""Queries whose tables are printed; a file (--out) takes all."""


def search_index(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The folder of an index.")],
    target: Annotated[
        str | None,
        typer.Option("--target", metavar="TARGET", help="Chain and query (default: the target it was built with)."),
    ] = None,
    query: Annotated[
        list[int],
        typer.Option("--query", metavar="K", min=0, help="Ask about example K of the query alone; repeatable."),
    ] = [],  # noqa: B006
    stage: Annotated[
        str | None, typer.Option("--stage", metavar="STAGE", help="Only this stage's examples (default: all).")
    ] = None,
    top: Annotated[int, typer.Option("--top", metavar="N", min=1, help="Rows of the most harmful and helpful.")] = 10,
    rescore: Annotated[
        str | None,
        typer.Option(
            "--rescore",
            metavar="N|P%",
            help="Examples scored exactly, half from either end (default: for a recall of 0.95, at most a tenth).",
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="Also write all rows to a .csv or .parquet file.")
    ] = None,
    solve: options.Solve = [],  # noqa: B006
    quick: options.Quick = False,
    exact: options.Exact = False,
    debug: options.Debug = False,
) -> None:
    """Find the examples that a query's loss comes from, by an index: few are looked at, and those exactly."""
    del debug

    from stagetrace.cli import settings
    from stagetrace.cli.target import load
    from stagetrace.index import Index
    from stagetrace.index.hits import check_ending, save
    from stagetrace.index.manifest import read_index_manifest
    from stagetrace.progress import Bars

    number = _number(rescore)
    if out is not None:
        check_ending(out)
    typed = settings.SolveOptions(solve, options.preset(quick=quick, exact=exact))
    recorded = read_index_manifest(folder).target
    place = target or recorded
    if place is None:
        refuse(f"{folder} was built in Python, so it names no TARGET; type --target module:function")
    job = load(place)
    asked = job.query
    if query:
        last = len(asked.data) - 1
        if max(query) > last:
            refuse(f"--query {max(query)}: the query of {place} has the examples 0 to {last}")
        asked = asked.each_of(query)
    chosen = settings.asked(job.chain, typed, job.options)
    index = Index.open(folder, job.chain)
    found = index.search(asked, top=top, rescore=number, of=stage, progress=Bars(), **chosen)
    found = {name: replace(hits, named=tuple(query)) for name, hits in found.items()}
    if out is not None:
        save(found, out)
    _show(found, top, out)


def _number(typed: str | None) -> int | float | None:
    """`1000` or `10%`."""
    if typed is None:
        return None
    try:
        return float(typed[:-1]) / 100 if typed.endswith("%") else int(typed)
    except ValueError:
        refuse(f"--rescore must be a number of examples or a share, such as 1000 or 10%, got '{typed}'")


def _show(found: "dict[str, Hits]", top: int, out: Path | None) -> None:
    from stagetrace.results.sign import SIGN
    from stagetrace.terminal import terminal

    console = terminal()

    def say(words: Any) -> None:
        console.print(words, highlight=False, soft_wrap=True, markup=False)

    for hits in found.values():
        rows = hits.ranking.n_queries
        for place in range(min(SHOWN, rows)):
            for harmful in (True, False):
                say(hits.top(min(top, hits.ranking.harmful.shape[1]), query=place, harmful=harmful).table().rich())
        if rows > SHOWN:
            say(f"and {rows - SHOWN} more queries: type --query K, or --out FILE for all")
        say(hits.says())
        solution = hits.ranking.solution
        if solution is not None:
            say(f"{hits.stage}: solved by {solution.system}, relative residual {solution.relative_residual:.1e}")
        say(f"{hits.stage}: " + ", ".join(f"{name} {seconds:.2f} s" for name, seconds in hits.seconds.items()))
    say(SIGN)
    if out is not None:
        say(f"wrote {out}")

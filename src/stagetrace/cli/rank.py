"""`stagetrace rank`: for each of many queries the examples at both ends of its ranking."""

from pathlib import Path
from typing import Annotated

import typer

from stagetrace.cli import options

__all__ = ["rank_queries"]


def rank_queries(
    target: options.Target,
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder of the rankings: new or empty.")],
    solve: options.Solve = [],  # noqa: B006
    quick: options.Quick = False,
    exact: options.Exact = False,
    of: Annotated[list[str], typer.Option("--of", metavar="STAGE", help="Rank only this stage's examples.")] = [],  # noqa: B006
    precision: options.Precision = [],  # noqa: B006
    keep: Annotated[
        int, typer.Option("--keep", metavar="N", min=1, help="Examples kept at either end, for each query.")
    ] = 100,
    top: Annotated[int, typer.Option("--top", metavar="N", min=0, help="Rows shown, for the first query.")] = 5,
    debug: options.Debug = False,
) -> None:
    """Rank every stage's examples for each example of the query, and keep the two ends of each ranking.

    It takes the memory of what is kept, however many examples there are. Only the order counts here: from 10 queries on
    each is solved to a relative residual of 0.1, unless --solve rtol=... says another.
    """
    del debug

    from stagetrace import parallel
    from stagetrace.cli import settings, show
    from stagetrace.cli.target import load
    from stagetrace.progress import Bars, Silent
    from stagetrace.terminal import terminal
    from stagetrace.tracing.ranking import rank, solver_for_order

    typed = settings.SolveOptions(solve, options.preset(quick=quick, exact=exact))
    with parallel.started() as world:
        job = load(target, precision)
        query = job.query.each()  # whatever the target asks for: each example is a query
        curvature = settings.curvatures(job.chain, typed, job.options.get("curvature"))
        solver = settings.solvers(job.chain, typed, job.options.get("solver"), curvature, solver_for_order(query))
        found = rank(
            job.chain,
            query,
            top=keep,
            curvature=curvature,
            solver=solver,
            of=of or job.options.get("of"),
            out=out,
            progress=Bars() if world.is_first else Silent(),
        )
        is_first = world.is_first
    if is_first:
        show.rankings(found, top, terminal(), 0)
        terminal().print(f"saved to {out}", soft_wrap=True)

"""`stagetrace index`: what later searches look at in the place of all examples."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from stagetrace.cli import options

if TYPE_CHECKING:
    from stagetrace.index import Index, StageIndex

__all__ = ["index_target"]


def index_target(
    target: options.Target,
    out: Annotated[
        Path, typer.Option("--out", metavar="DIR", help="Folder of the index; the same command resumes it.")
    ],
    numbers: Annotated[
        int,
        typer.Option(
            "--numbers", metavar="N", min=1, help="Kept of each example, in a byte each; 996 are 1,000 bytes."
        ),
    ] = options.INDEX_NUMBERS,
    store: Annotated[
        options.IndexStore,
        typer.Option(
            "--store",
            metavar="KIND",
            help="components; words, for sequences of an embedding table's words; auto: what fits the model.",
        ),
    ] = "auto",
    of: Annotated[list[str], typer.Option("--of", metavar="STAGE", help="Index only this stage's examples.")] = [],  # noqa: B006
    queries: Annotated[
        int,
        typer.Option(
            "--queries", metavar="N", min=0, help="Examples of the query that recall is measured with; 0: not."
        ),
    ] = options.INDEX_QUERIES,
    memory: Annotated[
        float, typer.Option("--memory", metavar="GIB", min=0.1, help="For the basis; a large model's needs much.")
    ] = options.INDEX_MEMORY,
    solve: options.Solve = [],  # noqa: B006
    quick: options.Quick = False,
    exact: options.Exact = False,
    debug: options.Debug = False,
) -> None:
    """Index every stage's examples once, so that `stagetrace search` looks at few of them for each query."""
    del debug

    from stagetrace.cli import settings
    from stagetrace.cli.target import load
    from stagetrace.index import build
    from stagetrace.progress import Bars
    from stagetrace.results.lock import refuse_in_use
    from stagetrace.terminal import terminal

    typed = settings.SolveOptions(solve, options.preset(quick=quick, exact=exact))
    refuse_in_use(out)  # before the target's models are loaded
    job = load(target)
    chosen = settings.asked(job.chain, typed, job.options)
    found = build(
        job.chain,
        job.query,
        out,
        of=of or job.options.get("of"),
        store=store,
        numbers=numbers,
        queries=queries,
        memory=int(memory * 2**30),
        target=target,
        progress=Bars(),
        **chosen,
    )
    console = terminal()
    for line in said(found, out):
        console.print(line, highlight=False, soft_wrap=True, markup=False)


def _kept(held: "StageIndex") -> str:
    """What is kept of a stage's examples, and in how many bytes."""
    if held.store == "words":
        assert held.bytes_mean is not None
        return (
            f"{held.n_examples:,} examples by words, in at most {held.bytes_each:,} bytes each (mean "
            f"{held.bytes_mean:,.0f}; rows of at most {held.words:,} words and {held.numbers:,} coordinates of EK-FAC, "
            f"{held.codes}); fitted on {held.drawn:,} examples, {held.parameters:,} parameters"
        )
    kept = f"{held.n_examples:,} examples in {held.bytes_each:,} bytes each ({held.numbers:,} numbers, {held.codes})"
    return f"{kept}; basis of {held.drawn:,} gradients of {held.parameters:,} parameters"


def said(index: "Index", out: Path) -> list[str]:
    """What was built, and what it is worth."""
    from stagetrace.index.recall import AIM

    lines = list[str]()
    for name, held in index.stages.items():
        lines.append(f"{name}: {_kept(held)}")
        lines += [f"{name}: {note}" for note in held.notes]
        recall = held.recall
        if recall is None:
            lines.append(f"{name}: recall was not measured, so a search says nothing of what it misses")
            continue
        kind = "examples that the basis was not made of" if recall.unseen else "all examples"
        shares = ", ".join(
            f"{share:.3f} after {number:,}" for number, share in zip(recall.rescored, recall.honest, strict=True)
        )
        lines.append(
            f"{name}: recall@{recall.top} {shares} rescored (mean over {recall.queries} queries and both ends of the "
            f"ranking, {kind})"
        )
        best = max(recall.honest)
        if best < AIM:
            lines.append(
                f"{name}: THIS IS LOW: a search misses {1 - best:.0%} of the top {recall.top} even after a tenth of "
                "the examples; more --numbers or --rescore may help, and stagetrace score misses none"
            )
    return [*lines, f"search it: stagetrace search {out}"]

"""The command line of `bench`."""

from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from benchmarks.bench import rows as parts
from benchmarks.bench.figure import draw
from benchmarks.bench.inputs import Inputs
from benchmarks.bench.judged import YARDSTICK, judged
from benchmarks.bench.measured import Bench, Measured
from benchmarks.bench.references import References
from benchmarks.bench.rows import rows
from benchmarks.bench.tables import tables
from benchmarks.bench.truth import truth
from benchmarks.report import Report
from benchmarks.rivals.call import ROOT
from benchmarks.rivals.given import Given
from benchmarks.setting import Asked
from stagetrace.errors import DataError

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
OUT = ROOT / "benchmarks" / "results" / "bench.json"
TEXTS = 16
JUDGED = {parts.ONE: "digits-mean", parts.HUNDRED: "digits-100", parts.THOUSAND: "digits-100"}
"""Parts whose scores are compared with exact ones: the first hundred queries' where there are more."""


@app.command()
def bench(
    data: Annotated[
        Path, typer.Option("--data", metavar="DIR", exists=True, file_okay=False, help="Folder of mnist and wikitext2.")
    ],
    envs: Annotated[
        Path, typer.Option("--envs", metavar="DIR", file_okay=False, help="The other libraries' environments.")
    ] = Path("runs/bench/envs"),
    work: Annotated[
        Path, typer.Option("--work", metavar="DIR", file_okay=False, help="Rows that are done, models, references.")
    ] = Path("runs/bench"),
    out: Annotated[
        Path, typer.Option("--out", metavar="FILE", dir_okay=False, help="The JSON; a PNG beside it.")
    ] = OUT,
    only: Annotated[
        list[str] | None,
        typer.Option("--only", metavar="LIBRARY[/PART[/METHOD]]", help="Measure these rows; repeatable."),
    ] = None,
    sequences: Annotated[
        int, typer.Option("--sequences", min=8, help="Of text, that are scored and that the curvature averages over.")
    ] = TEXTS,
    unjudged: Annotated[
        bool, typer.Option("--unjudged", help="Costs alone: no exact answers, no retraining to compare with.")
    ] = False,
    quick: Annotated[bool, typer.Option("--quick", help="Small sizes: to see that it runs.")] = False,
    seed: Annotated[int, typer.Option("--seed", help="Of the weights and every draw.")] = 0,
) -> None:
    """Measure what is not done yet, then write all that is."""
    torch.set_num_threads(1)
    asked = Asked(data, work / "checkpoints", quick=quick, seed=seed, out=out)
    report = Report("bench", asked)
    wanted, asks = tuple(only or ()), rows(quick)
    for each in wanted:
        if not any(ask.wanted((each,)) for ask in asks):
            some = ", ".join(sorted({ask.rival for ask in asks}))
            raise DataError(f"bench: --only {each} is no row; a row begins with a library ({some}), as curvlinops/one")
    inputs = Inputs(asked, work, 8 if quick else sequences)
    done = Bench(inputs, envs).measured(asks, wanted, report.say)
    report.fields |= {"sequences": inputs.texts, "rows from and to": _span(done)}
    tables(report, done, _quality(report, inputs, [] if unjudged else done))
    draw(out.with_suffix(".png"), done)
    report.write(out)
    report.say(f"written: {out}")


def _span(done: list[Measured]) -> list[str]:
    """When the first and the last row was begun: ratios hold within one run."""
    times = [row.line["started"] for row in done]
    return [min(times), max(times)] if times else []


def _quality(report: Report, inputs: Inputs, done: list[Measured]) -> dict[str, dict[str, Any]]:
    """Of the rows of the digits; and how far several ranks' scores are from one's."""
    found: dict[str, dict[str, Any]] = {}
    report.fields["truth_table"] = []
    of = [row for row in done if row.ask.part in JUDGED and row.seconds is not None]
    if of:
        mean = Given.read(inputs.path(JUDGED[parts.ONE]))
        quick = inputs.asked.quick
        kept = inputs.work / f"truth-{'quick' if quick else 'full'}-{inputs.asked.seed}.safetensors"
        retrained = truth(mean, kept, quick, report.say)
        report.table("The truth", [{"groups": len(retrained.members), **retrained.reliability()}], "truth_table")
        folder = inputs.work / "references"
        references = {name: _references(inputs, name, folder) for name in set(JUDGED.values())}
        for row in of:
            found[row.ask.name] = judged(row, references[JUDGED[row.ask.part]], retrained)
        residuals = {f"{name}, {YARDSTICK}": each.of(YARDSTICK) for name, each in references.items()}
        report.fields["residuals of the references"] = {n: r.residual for n, r in residuals.items() if r is not None}
        report.say(f"residuals of the references: {report.fields['residuals of the references']}")
    return found | _ranks(done)


def _references(inputs: Inputs, name: str, folder: Path) -> References:
    path = inputs.path(name)
    return References(Given.read(path), path.stem, folder)


def _ranks(done: list[Measured]) -> dict[str, dict[str, Any]]:
    of = {row.ask.ranks: row for row in done if row.ask.part == parts.RANKS and row.scores is not None}
    one = of[1].scores if 1 in of else None
    if one is None:
        return {}
    found: dict[str, dict[str, Any]] = {}
    for ranks, row in of.items():
        scores = row.scores
        if ranks > 1 and scores is not None:
            found[row.ask.name] = {"scores differ by": float((scores - one).norm() / one.norm())}
    return found

"""The command line: `python -m benchmarks two-stage score | table | predict | make`."""

import sys
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console

from benchmarks.two_stage import table as tables
from benchmarks.two_stage.chains import Asked
from benchmarks.two_stage.predictions import FOLDER as PREDICTIONS
from benchmarks.two_stage.predictions import Predictions
from benchmarks.two_stage.protocol import Protocol
from benchmarks.two_stage.truths import FOLDER as TRUTHS
from benchmarks.two_stage.truths import read_truths
from stagetrace.progress import Bars

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
Data = Annotated[
    Path, typer.Option("--data", metavar="DIR", exists=True, file_okay=False, help="Folder of the data sets' folders.")
]
Work = Annotated[Path, typer.Option("--work", metavar="DIR", file_okay=False, help="What is done is kept here.")]
Truths = Annotated[Path, typer.Option("--truths", metavar="DIR", file_okay=False, help="Folder of the truths.")]
Quick = Annotated[bool, typer.Option("--quick", help="Tiny stages: to see that it runs.")]
WORK = Path("runs/two-stage")
TINY = Protocol(percents=(10, 50), each=4, orders=2, repeated={10: 3, 50: 3}, seeds=1, singles=2)


@app.command()
def score(
    files: Annotated[
        list[Path], typer.Argument(metavar="FILE...", exists=True, dir_okay=False, help="Files of predictions.")
    ],
    truths: Truths = TRUTHS,
) -> None:
    """Score files of predictions against the truths."""
    known = read_truths(truths)
    for file in files:
        Console(width=None if sys.stdout.isatty() else 130).print(tables.of_one(Predictions.read(file, known), known))


@app.command()
def table(
    predictions: Annotated[Path, typer.Option("--predictions", metavar="DIR", file_okay=False)] = PREDICTIONS,
    truths: Truths = TRUTHS,
    work: Work = WORK,
    out: Annotated[Path, typer.Option("--out", metavar="DIR", file_okay=False)] = tables.FOLDER,
) -> None:
    """Score every file of a folder; write the table and the figure."""
    for path in tables.write(predictions, truths, work, out):
        typer.echo(f"written: {path}")


@app.command()
def predict(
    data: Data,
    work: Work = WORK,
    truths: Truths = TRUTHS,
    out: Annotated[Path, typer.Option("--out", metavar="DIR", file_okay=False)] = PREDICTIONS,
    only: Annotated[
        list[str] | None,
        typer.Option("--only", metavar="NAME", help="These files; 'orders' for other orders; repeatable."),
    ] = None,
    quick: Quick = False,
) -> None:
    """Write the files of the library's estimators and of the controls."""
    from benchmarks.two_stage.predict import predict as run

    for line in run(Asked(data, work, quick), read_truths(truths), only or (), out):
        typer.echo(line)


@app.command()
def make(
    data: Data,
    work: Work = WORK,
    out: Annotated[Path, typer.Option("--out", metavar="DIR", file_okay=False, help="Folder of the truths.")] = TRUTHS,
    family: Annotated[list[str] | None, typer.Option("--family", help="cifar, bert, gpt; repeatable.")] = None,
    seed: Annotated[list[int] | None, typer.Option("--seed", help="Repeatable; all if left out.")] = None,
    threads: Annotated[int | None, typer.Option("--threads", min=1, help="PyTorch's threads.")] = None,
    quick: Quick = False,
) -> None:
    """Train every chain, and again without each subset; go on where an earlier call was stopped."""
    from benchmarks.two_stage.make import make as run

    if threads is not None:
        torch.set_num_threads(threads)
    protocol = TINY if quick else Protocol()
    names, seeds = family or ["cifar", "bert", "gpt"], seed if seed is not None else list(range(protocol.seeds))
    for path in run(Asked(data, work, quick), protocol, names, seeds, out, Bars()):
        typer.echo(f"written: {path}")

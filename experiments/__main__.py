"""`python -m experiments NAME --data DIR [--out DIR]`: one experiment, from the data sets' folder to `OUT/result.json`.

Exit codes: 0 done, 1 refused or failed (one message says why), 2 wrong usage, 130 interrupted.
"""

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated

import torch
import typer

from experiments import choices, cleansing, misclassified, paper, resolve, reweight, smoothness, two_finetunings
from experiments.language import experiment as language
from experiments.minilm import experiment as minilm
from experiments.settings import Settings
from experiments.transformer_chains import experiment as transformer_chains
from experiments.word_vectors import experiment as word_vectors
from stagetrace.errors import StagetraceError
from stagetrace.progress import Bars, Progress

EXPERIMENTS: dict[str, Callable[[Settings, Progress], None]] = {
    **paper.EXPERIMENTS,
    resolve.EXPERIMENT.name: resolve.EXPERIMENT,
    smoothness.NAME: smoothness.EXPERIMENT,
    choices.NAME: choices.run,
    cleansing.NAME: cleansing.run,
    reweight.NAME: reweight.run,
    "similarity": partial(two_finetunings.run, "similarity", two_finetunings.similar),
    "finetune-size": partial(two_finetunings.run, "finetune-size", two_finetunings.sized),
    misclassified.NAME: misclassified.run,
    language.NAME: language.run,
    **transformer_chains.EXPERIMENTS,
    word_vectors.EXPERIMENT.name: word_vectors.EXPERIMENT,
    minilm.NAME: minilm.EXPERIMENT,
}
SIZES = {language.NAME: language.SIZES}
"""Of the experiments that come in several sizes: their names, the one that is taken if none is asked for first."""

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


@app.command()
def experiment(
    name: Annotated[str, typer.Argument(metavar="NAME", help=f"One of: {', '.join(EXPERIMENTS)}.")],
    data: Annotated[
        Path,
        typer.Option("--data", metavar="DIR", exists=True, file_okay=False, help="Folder of the data sets' folders."),
    ],
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="DIR", file_okay=False, help="Where results go (runs/NAME); resumed if there."),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", help="Of the weights, the batches and every draw.")] = 0,
    examples: Annotated[
        int | None, typer.Option("--examples", metavar="N", min=1, help="At most N training examples a stage.")
    ] = None,
    device: Annotated[str, typer.Option("--device", help="Where the models live: cpu, cuda, cuda:1, mps.")] = "cpu",
    dataset: Annotated[
        str | None,
        typer.Option("--dataset", metavar="FOLDER", help="Another data set of the same layout, in DIR or a path."),
    ] = None,
    weights: Annotated[
        Path | None,
        typer.Option(
            "--weights",
            metavar="FOLDER",
            exists=True,
            file_okay=False,
            help="Published weights and their tokenizer, for minilm.",
        ),
    ] = None,
    size: Annotated[
        str | None, typer.Option("--size", help="Of experiments that have several, such as language: small, paper.")
    ] = None,
) -> None:
    """Run one experiment and write its numbers, settings and figures."""
    if name not in EXPERIMENTS:
        raise typer.BadParameter(
            f"there is no experiment '{name}'; there are: {', '.join(EXPERIMENTS)}", param_hint="NAME"
        )
    if size is not None and size not in SIZES.get(name, ()):
        there = f"there are: {', '.join(SIZES[name])}" if name in SIZES else f"'{name}' has no sizes: leave it out"
        raise typer.BadParameter(f"there is no size '{size}'; {there}", param_hint="--size")
    out = out or Path("runs") / name
    settings = Settings(data, out, seed, examples, _device(device), dataset, size, weights=weights)
    EXPERIMENTS[name](settings, Bars())
    typer.echo(f"written: {out / 'result.json'}")


def _device(word: str) -> torch.device:
    """The device, tried with a single number."""
    try:
        return torch.zeros(1, device=word).device
    except (RuntimeError, AssertionError) as cause:
        line = (str(cause).strip().splitlines() or [""])[0]
        raise typer.BadParameter(f"no device '{word}' here ({line})", param_hint="--device") from cause


def main() -> None:
    try:
        app(prog_name="python -m experiments")
    except StagetraceError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("Interrupted. Finished work is saved; rerun the same command to resume.", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()

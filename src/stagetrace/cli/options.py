"""The words that several commands share, and those of `validate`.

`--help` is answered without PyTorch: a command imports what it works with when it is called, and the names and numbers
in its help stand here once more; a test holds them to what they are the names of.
"""

from pathlib import Path
from typing import Annotated, Literal

import typer

SOLVERS = ("lanczos", "normal-cg", "cg", "lissa", "direct")
CURVATURES = ("auto", "hessian", "gauss-newton", "ekfac", "identity")
MANY = ("auto", "separate", "shared-basis", "sample-space")
FITS = ("rerun", "resolve", "adam", "adamw", "sgd")
EPOCHS, BATCH, ADAM_RATE, SGD_RATE = 5, 64, 1e-4, 0.1
ENOUGH, TOKENS = 1000, 8000
EXPORTS = ("quanda", "kronfluence", "bergson", "csv", "numpy")
RowFormat = Literal["indices", "parquet", "hf"]
IndexStore = Literal["auto", "components", "words"]
RANDOM_SETS = 10
INDEX_NUMBERS, INDEX_QUERIES, INDEX_MEMORY = 996, 20, 4.0
NEW_TOKENS = 32

QUICK_EXAMPLES, QUICK_RTOL, QUICK_STEPS = 250, 1e-2, 50
"""`--quick`: a first look. The curvature is that of fewer examples, and the solve is rough."""

EXACT_RTOL, EXACT_STEPS = 1e-8, 5000
"""`--exact`: all examples, and in float64 a residual that only rounding stops."""

Target = Annotated[
    str, typer.Argument(metavar="TARGET", help="module:function or file.py:function, giving (chain, query)")
]
Folder = Annotated[Path, typer.Argument(metavar="DIR", help="The folder of a run.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
Out = Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder of the run; the same command resumes it.")]

# What the score is made of

Solve = Annotated[
    list[str],
    typer.Option(
        "--solve",
        metavar="[STAGE=]NAME[:KEY=VALUE,...]",
        help=f"How to solve each stage: a method ({', '.join(SOLVERS)}), settings, or both; repeatable. Keys: damping "
        f"(a number or auto; lanczos damps H^2), rtol, max_steps, many (how lanczos solves several queries: "
        f"{', '.join(MANY)}), curvature ({', '.join(CURVATURES)}), examples (of "
        f"the curvature: a number, all, or auto: at most {ENOUGH:,}; of texts as many as hold {TOKENS:,} tokens), seed "
        "(of these examples). E.g. finetune=lanczos:damping=0.1,max_steps=500",
    ),
]
Budget = Annotated[
    str | None,
    typer.Option(
        "--budget",
        metavar="SIZE",
        help="Memory that the run may take, such as 8GiB or 500MiB: it keeps less where it must, and is refused before "
        "anything is spent where no plan fits.",
    ),
]
Precision = Annotated[
    list[str],
    typer.Option(
        "--precision",
        metavar="[STAGE=]bf16",
        help="Compute the model's matrix products in bfloat16, all else in float32: of every stage, or of one; "
        "repeatable. How far off that is, is measured and printed.",
    ),
]
Quick = Annotated[
    bool,
    typer.Option(
        "--quick",
        help=f"A first look: {QUICK_EXAMPLES} examples in the curvature, residual {QUICK_RTOL:g}, at most "
        f"{QUICK_STEPS} steps. Settings in --solve take precedence.",
    ),
]
Exact = Annotated[
    bool,
    typer.Option(
        "--exact",
        help=f"All examples in the curvature, residual {EXACT_RTOL:g} in float64. Settings in --solve take precedence.",
    ),
]
# How stages are retrained

Retrain = Annotated[
    list[str],
    typer.Option(
        "--retrain",
        metavar="[STAGE=]NAME[:KEY=VALUE,...]",
        help=f"How to retrain each stage: a method ({', '.join(FITS)}), settings, or both; repeatable. Default: "
        "rerun where the training was recorded, else resolve if every stage from --stage on is float64, else adam. "
        f"Keys: order of rerun (recorded or other); lr ({ADAM_RATE:g}, of sgd {SGD_RATE:g}), steps ({EPOCHS} epochs), "
        f"batch_size ({BATCH}), start (warm, previous or cold), schedule (constant or cosine), momentum of sgd, decay "
        "of adamw; of resolve: tolerance of the gradient norm (1e-8), proximity (a pull towards the trained values, "
        "for flat minima; predict with --solve cg:damping=X). E.g. finetune=rerun:order=other, "
        "pretrain=adam:lr=1e-4,steps=300,start=cold",
    ),
]

# What is removed, and what is set beside the score

Stage = Annotated[
    str | None,
    typer.Option("--stage", metavar="STAGE", help="Whose examples are removed (default: the first stage)."),
]
Largest = Annotated[int, typer.Option("--largest", metavar="N", min=0, help="Remove those of largest |prediction|.")]
Random = Annotated[int, typer.Option("--random", metavar="N", min=0, help="Remove examples drawn by the seed.")]
By = Annotated[
    list[float],
    typer.Option(
        "--by",
        metavar="X",
        help="Fraction of the weight removed; repeatable. Default: 1; with rerun or resolve also 0.1 of single ones.",
    ),
]
Groups = Annotated[
    list[float],
    typer.Option("--groups", metavar="SHARE", help="Remove groups of this share of the examples; repeatable."),
]
GroupCount = Annotated[int, typer.Option("--group-count", metavar="N", min=3, help="Groups of each share.")]
Seeds = Annotated[
    int, typer.Option("--seeds", metavar="N", min=1, help="Runs, each with its own batch orders and initial values.")
]
Seed = Annotated[int, typer.Option("--seed", help="Seed of the examples drawn to be removed.")]
Processes = Annotated[
    int | None,
    typer.Option("--processes", metavar="N", min=1, help="Processes at once (default: one per core)."),
]
Together = Annotated[
    int,
    typer.Option("--together", metavar="N", min=1, help="Copies trained as one batched model; 1 saves memory."),
]
Tokens = Annotated[bool, typer.Option("--tokens", help="Remove single tokens of the stage, in place of examples.")]
Embedding = Annotated[
    str | None,
    typer.Option(
        "--embedding", metavar="MODULE", help="Also compare embedding similarity, from this submodule's output."
    ),
]
Text = Annotated[
    str | None, typer.Option("--text", metavar="COLUMN", help="Also compare BM25, on this column of the examples.")
]


GONE: dict[str, str] = {
    "--solver": "--solve cg",
    "--damping": "--solve damping=0.1",
    "--max-steps": "--solve max_steps=500",
    "--rtol": "--solve rtol=1e-4",
    "--curvature": "--solve curvature=gauss-newton",
    "--hessian-examples": "--solve examples=1000",
    "--seed": "--solve seed=1",
    "--fit": "--retrain adam",
    "--steps": "--retrain steps=300",
    "--rate": "--retrain lr=1e-4",
    "--batch-size": "--retrain batch_size=64",
    "--start": "--retrain start=cold",
    "--schedule": "--retrain schedule=cosine",
    "--tolerance": "--retrain tolerance=1e-8",
    "--proximity": "--retrain proximity=0.1",
}
"""Options of earlier versions, and what to type instead."""


def preset(*, quick: bool, exact: bool) -> Literal["quick", "exact"] | None:
    """The one that was typed.

    Raises:
        typer.BadParameter: both were.
    """
    if quick and exact:
        raise typer.BadParameter("--quick and --exact exclude each other: type one of them")
    return "quick" if quick else "exact" if exact else None

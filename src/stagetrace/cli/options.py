"""The words that several commands share, and those of `validate`.

`--help` is answered without PyTorch, so that the names and numbers in it stand here once more; a test holds them to
what they are the names of.
"""

from pathlib import Path
from typing import Annotated, Literal

import typer

SOLVERS = ("lanczos", "normal-cg", "cg", "lissa", "direct")
CURVATURES = ("auto", "hessian", "gauss-newton", "identity")
FITS = ("resolve", "adam", "sgd")
EPOCHS, BATCH, ADAM_RATE, SGD_RATE = 5, 64, 1e-4, 0.1
ENOUGH, TOKENS = 1000, 8000

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

Solver = Annotated[list[str], typer.Option("--solver", metavar="[STAGE=]NAME", help=f"{', '.join(SOLVERS)}.")]
Damping = Annotated[
    list[str], typer.Option("--damping", metavar="[STAGE=]X", help="Damping of the solve, or auto; lanczos damps H^2.")
]
MaxSteps = Annotated[list[str], typer.Option("--max-steps", metavar="[STAGE=]N", help="Most steps of a solve.")]
Rtol = Annotated[list[str], typer.Option("--rtol", metavar="[STAGE=]X", help="Relative residual to reach.")]
Curvature = Annotated[list[str], typer.Option("--curvature", metavar="[STAGE=]NAME", help=f"{', '.join(CURVATURES)}.")]
HessianExamples = Annotated[
    list[str],
    typer.Option(
        "--hessian-examples",
        metavar="[STAGE=]N",
        help=f"Average the curvature over N examples, or all, or auto (all of up to {ENOUGH:,}, of more {ENOUGH:,}; "
        f"of texts as many as hold {TOKENS:,} tokens).",
    ),
]
Quick = Annotated[
    bool,
    typer.Option(
        "--quick",
        help=f"A first look: {QUICK_EXAMPLES} examples in the curvature, residual {QUICK_RTOL:g}, at most "
        f"{QUICK_STEPS} steps. What is typed beside it wins.",
    ),
]
Exact = Annotated[
    bool,
    typer.Option(
        "--exact",
        help=f"All examples in the curvature, residual {EXACT_RTOL:g} in float64. What is typed beside it wins.",
    ),
]
Seed = Annotated[int | None, typer.Option("--seed", help="Seed of the draw of --hessian-examples.")]

# How stages are trained again

Fit = Annotated[
    list[str],
    typer.Option(
        "--fit",
        metavar="[STAGE=]NAME",
        help=f"{', '.join(FITS)}. Default: resolve if every stage from --stage on is float64, else adam.",
    ),
]
Steps = Annotated[
    list[str],
    typer.Option("--steps", metavar="[STAGE=]N", help=f"Steps of adam and sgd (default: {EPOCHS} epochs)."),
]
Rate = Annotated[
    list[str],
    typer.Option(
        "--rate",
        metavar="[STAGE=]X",
        help=f"Learning rate (adam {ADAM_RATE:g}, sgd {SGD_RATE:g}).",
    ),
]
BatchSize = Annotated[list[str], typer.Option("--batch-size", metavar="[STAGE=]N", help=f"Examples a step ({BATCH}).")]
Start = Annotated[
    list[str], typer.Option("--start", metavar="[STAGE=]NAME", help="warm (from the trained values) or cold.")
]
Schedule = Annotated[
    list[str], typer.Option("--schedule", metavar="[STAGE=]NAME", help="constant, or cosine (to zero at the end).")
]
Tolerance = Annotated[
    list[str], typer.Option("--tolerance", metavar="[STAGE=]X", help="Gradient norm that resolve reaches (1e-8).")
]
Proximity = Annotated[
    list[str],
    typer.Option(
        "--proximity",
        metavar="[STAGE=]X",
        help="resolve: a pull towards the trained values, for flat minima; predict with --solver cg --damping X.",
    ),
]

# What is taken out, and what is set beside the score

Stage = Annotated[
    str | None, typer.Option("--stage", metavar="STAGE", help="Whose examples are taken out (default: the first's).")
]
Largest = Annotated[int, typer.Option("--largest", metavar="N", min=0, help="Take out those of largest |prediction|.")]
Random = Annotated[int, typer.Option("--random", metavar="N", min=0, help="Take out examples drawn by the seed.")]
By = Annotated[
    list[float],
    typer.Option(
        "--by",
        metavar="X",
        help="Part of the weight taken out; repeatable. Default: 1, and with resolve 0.1 of single examples too.",
    ),
]
Groups = Annotated[
    list[float],
    typer.Option("--groups", metavar="SHARE", help="Take out groups of this share of the examples; repeatable."),
]
GroupCount = Annotated[int, typer.Option("--group-count", metavar="N", min=3, help="Groups of each share.")]
Seeds = Annotated[
    int, typer.Option("--seeds", metavar="N", min=1, help="Runs: batch orders, initial values. resolve needs one.")
]
DrawSeed = Annotated[
    int | None, typer.Option("--seed", help="Seed of what is drawn to be taken out (0), and of --hessian-examples.")
]
Processes = Annotated[
    int | None, typer.Option("--processes", metavar="N", min=1, help="That train at once (default: one for each core).")
]
Together = Annotated[
    int, typer.Option("--together", metavar="N", min=1, help="Copies trained as one batched model; 1 needs least.")
]
Embedding = Annotated[
    str | None,
    typer.Option("--embedding", metavar="MODULE", help="Also show embedding similarity, of this submodule's output."),
]
Text = Annotated[
    str | None, typer.Option("--text", metavar="COLUMN", help="Also show BM25, of this column of the examples.")
]


def preset(*, quick: bool, exact: bool) -> Literal["quick", "exact"] | None:
    """The one that was typed.

    Raises:
        typer.BadParameter: both were.
    """
    if quick and exact:
        raise typer.BadParameter("--quick and --exact exclude each other: type one of them")
    return "quick" if quick else "exact" if exact else None

"""`python -m benchmarks NAME --data DIR --out FILE`: one benchmark, its tables on the screen and its numbers in FILE.

`python -m benchmarks bench ...` measures other libraries beside this one; see `benchmarks/bench`.
`python -m benchmarks two-stage ...` scores methods against retrained truths; see `benchmarks/two_stage`.

Exit codes: 0 done, 1 refused or failed (one message says why), 2 wrong usage.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import torch
import typer

from benchmarks import (
    adjoints,
    beside,
    corpora,
    default,
    ekfac,
    embeddings,
    exact,
    fixed,
    gpu,
    index,
    index_texts,
    index_words,
    large_recording,
    memory,
    plans,
    products,
    queries,
    ranking,
    ranks,
    recording,
    retraining,
    scoring,
    sft_dpo,
    solvers,
    startup,
    token_masks,
    transformer,
    why,
)
from benchmarks.report import Report
from benchmarks.setting import Asked
from stagetrace.errors import StagetraceError


def _recipes(report: Report) -> None:
    from benchmarks.recipes.run import run  # TRL and peft are imported by it

    run(report)


BENCHMARKS: dict[str, Callable[[Report], None]] = {
    "products": products.run,
    "solvers": solvers.run,
    "scoring": scoring.run,
    "memory": memory.run,
    "retraining": retraining.run,
    "embeddings": embeddings.run,
    "default": default.run,
    "subsets": default.run_subsets,
    "startup": startup.run,
    "recording": recording.run,
    "large-recording": large_recording.run,
    "exact": exact.run,
    "fixed": fixed.run,
    "beside": beside.run,
    "queries": queries.run,
    "adjoints": adjoints.run,
    "ranking": ranking.run,
    "ekfac": ekfac.run,
    "ranks": ranks.run,
    "gpu": gpu.run,
    "transformer": transformer.run,
    "index": index.digits,
    "index-million": index.million,
    "index-texts": index_texts.run,
    "index-words": index_words.run,
    "plans": plans.run,
    "token-masks": token_masks.run,
    "why": why.run,
    "recipes": _recipes,
    "sft-dpo": sft_dpo.run,
    "corpora": corpora.run,
}

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


@app.command()
def benchmark(
    name: Annotated[str, typer.Argument(metavar="NAME", help=f"One of: {', '.join(BENCHMARKS)}.")],
    data: Annotated[
        Path,
        typer.Option("--data", metavar="DIR", exists=True, file_okay=False, help="Folder of the data sets' folders."),
    ],
    out: Annotated[Path, typer.Option("--out", metavar="FILE", dir_okay=False, help="Where the JSON goes.")],
    checkpoints: Annotated[
        Path | None,
        typer.Option(
            "--checkpoints",
            metavar="DIR",
            file_okay=False,
            help="Folder of pretrain.safetensors (the experiment's OUT/checkpoints); trained and kept there if absent.",
        ),
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Small sizes: to see that it runs.")] = False,
    seed: Annotated[int, typer.Option("--seed", help="Of the weights, the vectors and every draw.")] = 0,
    threads: Annotated[int | None, typer.Option("--threads", min=1, help="PyTorch's threads.")] = None,
    weights: Annotated[
        Path | None,
        typer.Option(
            "--weights",
            metavar="DIR",
            exists=True,
            file_okay=False,
            help="Pretrained weights and tokenizer of `large-recording` (save_pretrained); random ones otherwise.",
        ),
    ] = None,
    device: Annotated[str, typer.Option("--device", help="Where the models live: cpu, cuda.")] = "cpu",
    other: Annotated[
        Path | None,
        typer.Option(
            "--other", metavar="CHECKOUT", file_okay=False, help="For beside and fixed: what to compare with."
        ),
    ] = None,
    rival: Annotated[
        Path | None,
        typer.Option(
            "--rival", metavar="PYTHON", dir_okay=False, help="For queries and ekfac: a Python with kronfluence."
        ),
    ] = None,
    only: Annotated[
        str | None,
        typer.Option("--only", metavar="NAME", help=f"For beside: one of {', '.join(beside.NAMES)}; all if left out."),
    ] = None,
) -> None:
    """Measure one thing and write down how it was measured."""
    if name not in BENCHMARKS:
        raise typer.BadParameter(f"there is no benchmark '{name}'; there are: {', '.join(BENCHMARKS)}")
    if only is not None and only not in beside.NAMES:
        raise typer.BadParameter(f"beside compares {', '.join(beside.NAMES)}; not '{only}'")
    if threads is not None:
        torch.set_num_threads(threads)
    report = Report(name, Asked(data, checkpoints, quick, seed, out, weights, torch.device(device), other, only, rival))
    BENCHMARKS[name](report)
    report.write(out)
    report.say(f"written: {out}")


def main() -> None:
    try:
        if sys.argv[1:2] == ["two-stage"]:  # a group of commands of its own, see `benchmarks/two_stage`
            from benchmarks.two_stage.command import app as two_stage

            two_stage(sys.argv[2:], prog_name="python -m benchmarks two-stage")
        if sys.argv[1:2] == ["bench"]:  # beside other libraries, see `benchmarks/bench`
            from benchmarks.bench.command import app as bench

            bench(sys.argv[2:], prog_name="python -m benchmarks bench")
        app(prog_name="python -m benchmarks")
    except StagetraceError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()

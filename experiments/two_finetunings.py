"""One pretrained embedding, two fine-tunings of it: for which do the pretraining examples matter more?

What `similarity` and `finetune-size` share. For each seed (its own weights, batch orders and draws) the first stage is
trained once and each fine-tuning on top of it; the pretraining examples are scored against the test loss of each, and
the mean absolute scores are compared seed by seed.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from torch import Tensor

from experiments import cifar_frozen
from experiments.figures import densities
from experiments.intervals import in_words, over_seeds, ratio_over_seeds
from experiments.networks import ConvNet
from experiments.result import write_result
from experiments.settings import Settings
from experiments.tasks import Task
from experiments.tracing import solving, warnings_of
from experiments.training import Training
from experiments.two_stages import counts, finetuned, pretrained, untrained
from stagetrace import Chain, Hessian, Lanczos, Link, Query, Stage, trace
from stagetrace.curvature.choices import Curvature
from stagetrace.objectives import Classification
from stagetrace.progress import Progress
from stagetrace.solvers.base import Solver

PRETRAINING = cifar_frozen.PLAN.pretraining
FINETUNING = cifar_frozen.PLAN.finetuning
"""Of the experiments whose scores are compared with retraining; the paper takes one setting for all of them too."""
HESSIAN_EXAMPLES = 1000
FINETUNE_HESSIAN_EXAMPLES = 2000
SOLVERS: dict[str, Solver] = {"pretrain": Lanczos(max_steps=2000), "finetune": Lanczos(max_steps=2000)}


@final
@dataclass(frozen=True)
class Finetuning:
    """One of the two.

    name: a letter, as in the paper.
    words: what it is, for the figure.
    task: all its examples; examples: how many of them are drawn for training.
    """

    name: str
    words: str
    task: Task
    examples: int
    training: Training
    link: Link


def compare(
    name: str,
    settings: Settings,
    first: Task,
    finetunings: tuple[Finetuning, Finetuning],
    seeds: int,
    progress: Progress,
) -> None:
    """Train and score, seed by seed; writes `seed-*/` and, after each seed, `scores.png` and `result.json`."""
    done: list[dict[str, Any]] = []
    for seed in range(settings.seed, settings.seed + seeds):
        found, scores = _one_seed(settings, seed, first, finetunings, progress)
        done.append(found)
        fields = _compared(done, finetunings)
        write_result(name, settings, {"counts": _counts(settings, first, finetunings), **fields, "seeds": done})
        _draw(settings.out / "scores.png", seed, scores, finetunings, fields)


def _one_seed(
    settings: Settings, seed: int, first: Task, finetunings: tuple[Finetuning, ...], progress: Progress
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """What training and tracing say, and the scores by fine-tuning."""
    folder = settings.out / f"seed-{seed}"
    first = first.drawn(settings.examples, seed).to(settings.device)
    base, *models = untrained(seed, first, len(first.classes), *(len(one.task.classes) for one in finetunings))
    found: dict[str, Any] = {
        "seed": seed,
        "pretrain": pretrained(folder / "checkpoints", base, first, PRETRAINING.seeded(seed), progress),
    }
    scores: dict[str, Tensor] = {}
    for one, model in zip(finetunings, models, strict=True):
        task, frozen = one.task.drawn(one.examples, seed).to(settings.device), one.link.keeps_shared
        plan, stage = one.training.seeded(seed), f"finetune-{one.name}"
        said = finetuned(folder / "checkpoints", stage, model, base, task, plan, progress, frozen=frozen)
        traced, scores[one.name] = _scored(folder / f"run-{one.name}", seed, base, first, model, task, one, progress)
        found[one.name] = {"training": said, **traced}
    return found, scores


def _scored(
    out: Path,
    seed: int,
    base: ConvNet,
    first: Task,
    model: ConvNet,
    task: Task,
    one: Finetuning,
    progress: Progress,
) -> tuple[dict[str, Any], Tensor]:
    """The scores of the pretraining examples, and how they were computed."""
    chain = Chain(
        Stage(
            "pretrain",
            model=base,
            objective=Classification(),
            data=first.train.dataset,
            weight_decay=PRETRAINING.weight_decay,
        ),
        Stage(
            "finetune",
            model=model,
            objective=Classification(),
            data=task.train.dataset,
            link=one.link,
            weight_decay=one.training.weight_decay,
        ),
    )
    curvature: dict[str, Curvature] = {
        "pretrain": Hessian(examples=HESSIAN_EXAMPLES, seed=seed),
        "finetune": Hessian(examples=FINETUNE_HESSIAN_EXAMPLES, seed=seed),
    }
    query = Query(task.test.dataset)
    result = trace(chain, query, curvature=curvature, solver=SOLVERS, of="pretrain", out=out, progress=progress)
    values = result["pretrain"].values
    size = values.abs().mean().item()
    said = {
        "mean_absolute": size,
        "mean_absolute_of_sums": size * len(task.test),
        "solving": solving(result, curvature, SOLVERS),
        "warnings": warnings_of(result),
    }
    return said, values


def _compared(done: list[dict[str, Any]], finetunings: tuple[Finetuning, Finetuning]) -> dict[str, Any]:
    """Mean absolute scores over the seeds, and their ratio."""
    left, right = (one.name for one in finetunings)
    fields: dict[str, Any] = {}
    for what in ("mean_absolute", "mean_absolute_of_sums"):
        sizes = {name: [found[name][what] for found in done] for name in (left, right)}
        fields[what] = {name: over_seeds(values) for name, values in sizes.items()}
        fields[what][f"{left} over {right}"] = ratio_over_seeds(sizes[left], sizes[right])
    alphas = {one.name: one.link.settings.get("alpha") for one in finetunings}
    return {"what": {one.name: one.words for one in finetunings}, "alpha": alphas, **fields}


def _counts(settings: Settings, first: Task, finetunings: tuple[Finetuning, ...]) -> dict[str, Any]:
    tasks = {one.name: one.task.drawn(one.examples, settings.seed) for one in finetunings}
    return counts(pretrain=first.drawn(settings.examples, settings.seed), **tasks)


def _draw(
    path: Path, seed: int, scores: dict[str, Tensor], finetunings: tuple[Finetuning, Finetuning], fields: dict[str, Any]
) -> None:
    left, right = (one.name for one in finetunings)
    sizes = fields["mean_absolute"]
    ratio = sizes[f"{left} over {right}"]
    densities(
        path,
        {f"{one.name}: {one.words}": scores[one.name] for one in finetunings},
        title=f"Scores of the same {len(scores[left]):,} pretraining examples, two fine-tunings (seed {seed})",
        note=(
            f"Mean absolute score over {ratio['n']} seed(s): {left} {in_words(sizes[left], '.4f')}, "
            f"{right} {in_words(sizes[right], '.4f')}.\n"
            f"Ratio {left} over {right}: {in_words(ratio, '.2f')}."
        ),
    )

"""`similarity` and `finetune-size`: two fine-tunings of one embedding; for which do pretraining examples matter more?

For each seed (its own weights, batch orders and draws) the first stage is trained once and each fine-tuning on top of
it; the pretraining examples are scored against the test loss of each, and the mean absolute scores are compared seed by
seed. Training is that of `cifar-frozen`, whose scores are compared with retraining; damping is the default, from each
stage's spectrum. The pages in `docs/experiments` say what the paper does, and what was tried first.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, final

from torch import Tensor

from experiments import paper, records
from experiments.checkpoints import Checkpoints
from experiments.image_stages import counts, finetuned, image_chain, pretrained, untrained
from experiments.records import Record, format_interval, over_seeds, ratio_over_seeds
from experiments.score_plots import densities
from experiments.settings import Settings
from experiments.tasks import Task, numbers_of, two_tasks
from stagetrace import Frozen, Hessian, Lanczos, Proximal, Query, trace
from stagetrace.progress import Progress

DATASET = "cifar10"
PRETRAINED = {"bird": 2, "frog": 6}
OTHER = {"automobile": 1, "deer": 4}
PRETRAINING, FINETUNING = paper.CIFAR_FROZEN.pretraining, paper.CIFAR_FROZEN.finetuning
FINETUNE_EXAMPLES = 5000
TIMES = 3
SEEDS = 5
HESSIAN_EXAMPLES = {"pretrain": 1000, "finetune": 2000}
SOLVERS = {"pretrain": Lanczos(max_steps=2000), "finetune": Lanczos(max_steps=2000)}


@final
@dataclass(frozen=True)
class Finetuning:
    """One of the two.

    name: a letter, as in the paper. words: what it is, for the figure.
    task: all its examples; examples: how many of them are drawn for training.
    """

    name: str
    words: str
    task: Task
    examples: int
    link: Frozen | Proximal

    def drawn(self, settings: Settings) -> Task:
        return self.task.drawn(self.examples, settings.seed)


def similar(settings: Settings) -> tuple[Task, list[Finetuning]]:
    """The pretraining task again (A), and another of as many classes (B); as many examples of each."""
    folder = settings.folder(DATASET)
    first, others = two_tasks(folder, numbers_of(folder, PRETRAINED))
    ten = len(first.classes) + len(others.classes) == 10
    unlike = others.only(numbers_of(folder, OTHER) if ten else others.classes[: len(first.classes)])
    few, link = min(settings.most(FINETUNE_EXAMPLES), len(first.train), len(unlike.train)), Frozen("embedding")
    same, other = "the pretraining task again", "another task"
    return first, [Finetuning("A", same, first, few, link), Finetuning("B", other, unlike, few, link)]


def sized(settings: Settings) -> tuple[Task, list[Finetuning]]:
    """Some examples (C), and three times as many with as many epochs (D), C's among them; the paper's alpha."""
    folder = settings.folder(DATASET)
    first, second = two_tasks(folder, numbers_of(folder, PRETRAINED))
    few, link = min(settings.most(FINETUNE_EXAMPLES), len(second.train) // TIMES), Proximal("embedding", alpha=0.01)
    words = f"{few:,} fine-tuning examples", f"{TIMES * few:,} examples, {TIMES} times the steps"
    return first, [Finetuning("C", words[0], second, few, link), Finetuning("D", words[1], second, TIMES * few, link)]


def run(
    name: str, tasks: Callable[[Settings], tuple[Task, list[Finetuning]]], settings: Settings, progress: Progress
) -> None:
    """Train and score, seed by seed; writes `seed-*/` and, after each seed, `scores.png` and `result.json`."""
    first, pair = tasks(settings)
    done = list[Record]()
    for seed in range(settings.seed, settings.seed + SEEDS):
        found, scores = _one_seed(settings, seed, first, pair, progress)
        done.append(found)
        several = {one.name: one.drawn(settings) for one in pair}
        fields: Record = {
            "counts": counts(pretrain=first.drawn(settings.examples, settings.seed), **several),
            **_compared(done, pair),
            "seeds": done,
        }
        records.write_result(name, settings, fields)
        _draw(settings, seed, scores, pair, fields["mean_absolute"])


def _one_seed(
    settings: Settings, seed: int, first: Task, pair: list[Finetuning], progress: Progress
) -> tuple[Record, dict[str, Tensor]]:
    """How training and tracing went, and the scores by fine-tuning."""
    folder = settings.out / f"seed-{seed}"
    store, first = Checkpoints(folder / "checkpoints"), first.drawn(settings.examples, seed).to(settings.device)
    base, *models = untrained(seed, first, len(first.classes), *(len(one.task.classes) for one in pair))
    found: Record = {"seed": seed, "pretrain": pretrained(store, base, first, PRETRAINING.seeded(seed), progress)}
    curvature: Any = {stage: Hessian(examples=count, seed=seed) for stage, count in HESSIAN_EXAMPLES.items()}
    scores = dict[str, Tensor]()
    for one, model in zip(pair, models, strict=True):
        task, frozen = one.task.drawn(one.examples, seed).to(settings.device), one.link.keeps_shared
        plan, stage = FINETUNING.seeded(seed), f"finetune-{one.name}"
        training = finetuned(store, stage, model, base, task, plan, progress, frozen=frozen)
        decays = PRETRAINING.weight_decay, FINETUNING.weight_decay
        chain, query = image_chain((base, model), (first, task), one.link, *decays), Query(task.test.dataset)
        options: Any = {"of": "pretrain", "out": folder / f"run-{one.name}", "progress": progress}
        result = trace(chain, query, curvature=curvature, solver=SOLVERS, **options)
        scores[one.name] = result["pretrain"].values
        size = scores[one.name].abs().mean().item()
        found[one.name] = {
            "training": training,
            "mean_absolute": size,
            "mean_absolute_of_sums": size * len(task.test),
            **records.of_trace(result, curvature, SOLVERS),
        }
    return found, scores


def _compared(done: list[Record], pair: list[Finetuning]) -> Record:
    """Mean absolute scores over the seeds, and their ratio."""
    fields, (left, right) = Record(), (one.name for one in pair)
    for what in ("mean_absolute", "mean_absolute_of_sums"):
        sizes = {name: [found[name][what] for found in done] for name in (left, right)}
        ratio = {f"{left} over {right}": ratio_over_seeds(sizes[left], sizes[right])}
        fields[what] = {name: over_seeds(values) for name, values in sizes.items()} | ratio
    alphas = {one.name: getattr(one.link, "alpha", None) for one in pair}
    return {"what": {one.name: one.words for one in pair}, "alpha": alphas, **fields}


def _draw(settings: Settings, seed: int, scores: dict[str, Tensor], pair: list[Finetuning], sizes: Record) -> None:
    left, right = (one.name for one in pair)
    ratio = sizes[f"{left} over {right}"]
    of_left, of_right = (f"{name} {format_interval(sizes[name], '.4f')}" for name in (left, right))
    densities(
        settings.out / "scores.png",
        {f"{one.name}: {one.words}": scores[one.name] for one in pair},
        title=f"Scores of the same {len(scores[left]):,} pretraining examples, two fine-tunings (seed {seed})",
        note=(
            f"Mean absolute score over {ratio['n']} seed(s): {of_left}, {of_right}.\n"
            f"Ratio {left} over {right}: {format_interval(ratio, '.2f')}."
        ),
    )

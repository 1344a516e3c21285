"""`misclassified`: what pretraining images stand behind a fine-tuned model's mistakes?

Chen et al. (2020), figure 4: test images that the fine-tuned model gets wrong, beside the pretraining images with the
largest positive score for each. The paper judges them by eye ("of low quality"). Here they are also counted: how much
more harmful they are than the rest, and whether the pretrained model has a large loss on them or stands near its
boundary, against the same of all pretraining examples.

The test images are the most confidently wrong ones; each is a query of its own. CIFAR-10 and MNIST, whichever `--data`
holds, with the classes of section 4.1; `--dataset` takes one data set instead.
"""

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from experiments.figures import Picture, beside
from experiments.images import class_names
from experiments.networks import ConvNet
from experiments.result import write_result
from experiments.settings import Settings
from experiments.tasks import Task, numbers_of, tasks_of
from experiments.tracing import solving, warnings_of
from experiments.training import Training
from experiments.two_finetunings import HESSIAN_EXAMPLES
from experiments.two_stages import counts, finetuned, pretrained, untrained
from stagetrace import Chain, Frozen, Hessian, Lanczos, Query, Scores, Stage, trace
from stagetrace.curvature.choices import Curvature
from stagetrace.errors import DataError
from stagetrace.objectives import Classification
from stagetrace.progress import Progress
from stagetrace.solvers.base import Solver

NAME = "misclassified"
PRETRAINED: dict[str, dict[str, int]] = {
    "cifar10": {"bird": 2, "frog": 6},
    "mnist": {"0": 0, "1": 1, "2": 2, "3": 3},
}
FINETUNE_EXAMPLES = 5000
PRETRAINING = Training(epochs=40, rate=3e-3, batch=128)
FINETUNING = Training(epochs=30, rate=1e-3, batch=128)
SOLVERS: dict[str, Solver] = {"pretrain": Lanczos(damping=1e-2), "finetune": Lanczos(damping=1e-4)}
QUERIES = 8
BESIDE = 6


def run(settings: Settings, progress: Progress) -> None:
    """Train, trace and draw; writes for each data set its folder and `NAME.png`, and one `result.json`."""
    given = Path(settings.dataset).name if settings.dataset else None
    names = [given] if given else [name for name in PRETRAINED if (settings.data / name).is_dir()]
    if not names:
        raise DataError(f"{settings.data} holds neither of {', '.join(PRETRAINED)}; name another one with --dataset")
    found: dict[str, Any] = {}
    for name in names:
        found[name] = _one_data_set(settings, name, progress)
        write_result(NAME, settings, {"data_sets": found})


def _one_data_set(settings: Settings, name: str, progress: Progress) -> dict[str, Any]:
    folder = settings.folder(name)
    first, second = tasks_of(
        settings, name, numbers_of(folder, PRETRAINED.get(name, PRETRAINED["cifar10"])), FINETUNE_EXAMPLES
    )
    out, seed = settings.out / name, settings.seed
    base, model = untrained(seed, first, len(first.classes), len(second.classes))
    checkpoints = out / "checkpoints"
    training = {
        "pretrain": pretrained(checkpoints, base, first, PRETRAINING.seeded(seed), progress),
        "finetune": finetuned(
            checkpoints, "finetune", model, base, second, FINETUNING.seeded(seed), progress, frozen=True
        ),
    }
    wrong, said, sure = _most_confidently_wrong(model, second)
    chain = Chain(
        Stage("pretrain", model=base, objective=Classification(), data=first.train.dataset),
        Stage("finetune", model=model, objective=Classification(), data=second.train.dataset, link=Frozen("embedding")),
    )
    curvature: dict[str, Curvature] = {
        "pretrain": Hessian(examples=HESSIAN_EXAMPLES, seed=seed),
        "finetune": Hessian(),
    }
    query = Query(second.test[wrong].dataset, reduction="none")
    result = trace(chain, query, curvature=curvature, solver=SOLVERS, of="pretrain", out=out / "run", progress=progress)
    scores = result["pretrain"]
    words = class_names(folder, "train") or [str(label) for label in range(1 + max(*first.classes, *second.classes))]
    rows = _rows(scores, first, second, wrong, said, sure, words)
    beside(settings.out / f"{name}.png", rows, f"Mistakes on {name}, and the pretraining images most harmful to each")
    return {
        "counts": counts(pretrain=first, finetune=second),
        "training": training,
        "solving": solving(result, curvature, SOLVERS),
        "warnings": warnings_of(result),
        "misclassified": _queries(scores, second, wrong, said, sure),
        "most_harmful": _nature(scores, base, first),
    }


@torch.no_grad()
def _most_confidently_wrong(model: ConvNet, task: Task) -> tuple[Tensor, Tensor, Tensor]:
    """Places in the test set, what the model said, and the probability it gave that; the surest mistake first."""
    shares = torch.cat([model(few) for few in task.test.pixels.split(1024)]).softmax(dim=1)
    sure, said = shares.max(dim=1)
    wrong = (said != task.test.labels).nonzero()[:, 0]
    if not len(wrong):
        raise DataError("the fine-tuned model makes no mistake on the test set; try another --seed or fewer --examples")
    chosen = wrong[sure[wrong].argsort(descending=True, stable=True)[:QUERIES]]
    return chosen, said[chosen], sure[chosen]


def _rows(
    scores: Scores, first: Task, second: Task, wrong: Tensor, said: Tensor, sure: Tensor, words: list[str]
) -> list[list[Picture]]:
    """A row a mistake: the test image, then its most harmful pretraining images."""
    rows: list[list[Picture]] = []
    for place, index in enumerate(wrong.tolist()):
        right, taken = (words[second.classes[int(label)]] for label in (second.test.labels[index], said[place]))
        row = [Picture(second.test.pixels[index], f"test: {right}\nsaid {taken}, {sure[place]:.1%}")]
        for harmful in scores.top(BESIDE, query=place):
            label = words[first.classes[int(first.train.labels[harmful.index])]]
            row.append(Picture(first.train.pixels[harmful.index], f"{label}\n{harmful.score:+.2f}"))
        rows.append(row)
    return rows


def _queries(scores: Scores, second: Task, wrong: Tensor, said: Tensor, sure: Tensor) -> list[dict[str, Any]]:
    """Each mistake, and how far the scores of its most harmful images stand out."""
    found: list[dict[str, Any]] = []
    for place, index in enumerate(wrong.tolist()):
        values, top = scores.values[place], scores.top(BESIDE, query=place)
        mean_top = sum(row.score for row in top) / len(top)
        found.append(
            {
                "test_row": int(second.test.rows[index]),
                "class": second.classes[int(second.test.labels[index])],
                "said": second.classes[int(said[place])],
                "probability_of_what_was_said": sure[place].item(),
                "most_harmful": [{"index": row.index, "score": row.score} for row in top],
                "mean_score_of_most_harmful": mean_top,
                "mean_score": values.mean().item(),
                "mean_absolute_score": values.abs().mean().item(),
                "most_harmful_over_mean_absolute": mean_top / values.abs().mean().item(),
            }
        )
    return found


@torch.no_grad()
def _nature(scores: Scores, base: ConvNet, first: Task) -> dict[str, Any]:
    """Loss and margin of the shown pretraining images under the pretrained model, against those of all.

    Margin: the right class's logit less the largest other one; near 0 is near the boundary, negative is wrong.
    """
    logits = torch.cat([base(few) for few in first.train.pixels.split(1024)]).double().cpu()
    labels = first.train.labels.cpu()
    losses = F.cross_entropy(logits, labels, reduction="none")
    right = logits.gather(1, labels[:, None])[:, 0]
    margins = right - logits.scatter(1, labels[:, None], -torch.inf).amax(dim=1)
    queries = range(scores.n_queries or 0)
    shown = torch.tensor(sorted({row.index for query in queries for row in scores.top(BESIDE, query=query)}))
    share = (losses[None] < losses[shown, None]).double().mean(dim=1)
    return {
        "images": len(shown),
        "median_loss": {"most_harmful": losses[shown].median().item(), "all": losses.median().item()},
        "mean_loss": {"most_harmful": losses[shown].mean().item(), "all": losses.mean().item()},
        "median_margin": {"most_harmful": margins[shown].median().item(), "all": margins.median().item()},
        "share_wrong": {
            "most_harmful": (margins[shown] < 0).double().mean().item(),
            "all": (margins < 0).double().mean().item(),
        },
        "mean_share_of_all_with_less_loss": share.mean().item(),
        "share_in_top_tenth_of_loss": (share >= 0.9).double().mean().item(),
    }

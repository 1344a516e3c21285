"""`misclassified`: what pretraining images stand behind a fine-tuned model's mistakes?

Chen et al. (2020), figure 4: the most confidently wrong test images, each a query of its own, beside the pretraining
images with the largest scores. Here these are also counted: how much more harmful they are than the rest, and whether
the pretrained model has a large loss on them or stands near its boundary. CIFAR-10 and MNIST, whichever `--data` holds.
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from experiments import records
from experiments.checkpoints import Checkpoints
from experiments.image_stages import counts, finetuned, image_chain, pretrained, untrained
from experiments.images import class_names
from experiments.networks import ConvNet
from experiments.records import Record
from experiments.score_plots import Picture, grid
from experiments.settings import Settings
from experiments.tasks import Task, numbers_of, tasks_of
from experiments.training import Training, logits_of
from stagetrace import Frozen, Hessian, Lanczos, Query, Scores, trace
from stagetrace.errors import DataError
from stagetrace.progress import Progress

NAME = "misclassified"
PRETRAINED: dict[str, dict[str, int]] = {
    "cifar10": {"bird": 2, "frog": 6},
    "mnist": {"0": 0, "1": 1, "2": 2, "3": 3},
}
FINETUNE_EXAMPLES = 5000
PRETRAINING = Training(epochs=40, rate=3e-3, batch=128)
FINETUNING = Training(epochs=30, rate=1e-3, batch=128)
HESSIAN_EXAMPLES = 1000
SOLVERS = {"pretrain": Lanczos(damping=1e-2), "finetune": Lanczos(damping=1e-4)}
QUERIES = 8
BESIDE = 6


class Mistake(NamedTuple):
    """A test image that the model gets wrong: its place in the test set, the answer, and how sure the model is."""

    place: int
    answer: int
    probability: float


def run(settings: Settings, progress: Progress) -> None:
    """Train, trace and draw; writes for each data set its folder and `NAME.png`, and one `result.json`."""
    given = settings.dataset_name
    names = [given] if given else [name for name in PRETRAINED if (settings.data / name).is_dir()]
    if not names:
        raise DataError(f"{settings.data} holds neither of {', '.join(PRETRAINED)}; name another one with --dataset")
    found = Record()
    for name in names:
        found[name] = _one_data_set(settings, name, progress)
        records.write_result(NAME, settings, {"data_sets": found})


def _one_data_set(settings: Settings, name: str, progress: Progress) -> Record:
    folder, seed, out = settings.folder(name), settings.seed, settings.out / name
    classes = numbers_of(folder, PRETRAINED.get(name, PRETRAINED["cifar10"]))
    tasks = first, second = tasks_of(settings, name, classes, FINETUNE_EXAMPLES)
    base, model = untrained(seed, first, len(first.classes), len(second.classes))
    store, plan = Checkpoints(out / "checkpoints"), FINETUNING.seeded(seed)
    training = {"pretrain": pretrained(store, base, first, PRETRAINING.seeded(seed), progress)}
    training["finetune"] = finetuned(store, "finetune", model, base, second, plan, progress, frozen=True)
    wrong = _most_confidently_wrong(model, second)
    curvature: Any = {"pretrain": Hessian(examples=HESSIAN_EXAMPLES, seed=seed), "finetune": Hessian()}
    query = Query(second.test[torch.tensor([mistake.place for mistake in wrong])].dataset, reduction="none")
    options: Any = {"of": "pretrain", "out": out / "run", "progress": progress}
    chain = image_chain((base, model), tasks, Frozen("embedding"))
    result = trace(chain, query, curvature=curvature, solver=SOLVERS, **options)
    words = class_names(folder, "train") or [str(label) for label in range(1 + max(*first.classes, *second.classes))]
    rows = _pictures(result["pretrain"], tasks, wrong, words)
    grid(settings.out / f"{name}.png", rows, f"Mistakes on {name}, and the pretraining images most harmful to each")
    return {
        "counts": counts(pretrain=first, finetune=second),
        "training": training,
        **records.of_trace(result, curvature, SOLVERS),
        "misclassified": [_query(result["pretrain"], second, n, mistake) for n, mistake in enumerate(wrong)],
        "most_harmful": _nature(result["pretrain"], base, first),
    }


def _most_confidently_wrong(model: ConvNet, task: Task) -> list[Mistake]:
    """The surest mistake first."""
    sure, answers = logits_of(model, task.test.pixels).softmax(dim=1).max(dim=1)
    wrong = (answers != task.test.labels).nonzero()[:, 0]
    if not len(wrong):
        raise DataError("the fine-tuned model makes no mistake on the test set; try another --seed or fewer --examples")
    chosen = wrong[sure[wrong].argsort(descending=True, stable=True)[:QUERIES]].tolist()
    return [Mistake(place, int(answers[place]), sure[place].item()) for place in chosen]


def _pictures(scores: Scores, tasks: tuple[Task, Task], wrong: list[Mistake], words: list[str]) -> list[list[Picture]]:
    """A row a mistake: the test image, then its most harmful pretraining images."""
    first, second = tasks
    rows = list[list[Picture]]()
    for query, (place, answer, probability) in enumerate(wrong):
        right, taken = (words[second.classes[int(label)]] for label in (second.test.labels[place], answer))
        row = [Picture(second.test.pixels[place], f"test: {right}\npredicted {taken}, {probability:.1%}")]
        for harmful in scores.top(BESIDE, query=query):
            label = words[first.classes[int(first.train.labels[harmful.index])]]
            row.append(Picture(first.train.pixels[harmful.index], f"{label}\n{harmful.score:+.2f}"))
        rows.append(row)
    return rows


def _query(scores: Scores, second: Task, query: int, mistake: Mistake) -> Record:
    """A mistake, and how far the scores of its most harmful images stand out."""
    values, top = scores.values[query], scores.top(BESIDE, query=query)
    mean_top, mean_absolute = sum(row.score for row in top) / len(top), values.abs().mean().item()
    return {
        "test_row": int(second.test.rows[mistake.place]),
        "class": second.classes[int(second.test.labels[mistake.place])],
        "said": second.classes[mistake.answer],
        "probability_of_what_was_said": mistake.probability,
        "most_harmful": [{"index": row.index, "score": row.score} for row in top],
        "mean_score_of_most_harmful": mean_top,
        "mean_score": values.mean().item(),
        "mean_absolute_score": mean_absolute,
        "most_harmful_over_mean_absolute": mean_top / mean_absolute,
    }


def _nature(scores: Scores, base: ConvNet, first: Task) -> Record:
    """Loss and margin of the shown pretraining images under the pretrained model, against those of all.

    Margin: the right class's logit less the largest other one; near 0 is near the boundary, negative is wrong.
    """
    logits, labels = logits_of(base, first.train.pixels).double().cpu(), first.train.labels.cpu()
    losses = F.cross_entropy(logits, labels, reduction="none")
    right = logits.gather(1, labels[:, None])[:, 0]
    margins = right - logits.scatter(1, labels[:, None], -torch.inf).amax(dim=1)
    queries = range(scores.n_queries or 0)
    shown = torch.tensor(sorted({row.index for query in queries for row in scores.top(BESIDE, query=query)}))
    share = (losses[None] < losses[shown, None]).double().mean(dim=1)

    def beside(values: Tensor, of: Any) -> Record:
        return {"most_harmful": of(values[shown]).item(), "all": of(values).item()}

    return {
        "images": len(shown),
        "median_loss": beside(losses, torch.median),
        "mean_loss": beside(losses, torch.mean),
        "median_margin": beside(margins, torch.median),
        "share_wrong": beside((margins < 0).double(), torch.mean),
        "mean_share_of_all_with_less_loss": share.mean().item(),
        "share_in_top_tenth_of_loss": (share >= 0.9).double().mean().item(),
    }

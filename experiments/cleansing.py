"""`cleansing`: does leaving out the most harmful pretraining examples make the fine-tuned model better?

Chen et al. (2020), section 4.2. For each seed (its own weights, batch order, draw of fine-tuning examples and halves of
the test set), both stages are trained again from scratch without the most harmful pretraining examples and without as
many that were drawn before any score existed. One half of the test set is the query, the other measures. A retraining
starts from the same first weights as a model with all examples and takes the same batches, examples left out weighted
0. `docs/experiments/cleansing.md` says what these choices rest on.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from experiments import records, score_plots
from experiments.batched_stages import BatchedStages, Pair
from experiments.checkpoints import Checkpoints
from experiments.image_stages import counts, image_chain
from experiments.records import Record, format_interval, over_seeds
from experiments.settings import Settings
from experiments.tasks import Task, numbers_of, two_tasks
from experiments.training import Training, logits_of, quality
from stagetrace import Frozen, GaussNewton, Hessian, Lanczos, Query, trace
from stagetrace.progress import Progress

NAME = "cleansing"
DATASET = "cifar10"
PRETRAINED = {"bird": 2, "frog": 6}
FINETUNE_EXAMPLES = 5000
SEEDS = 5
MODELS = 8
SHARES = (0.01, 0.05, 0.1, 0.2, 0.3)
MAIN = 0.1
PRETRAINING = Training(epochs=40, rate=3e-3, batch=128)
FINETUNING = Training(epochs=30, rate=1e-3, batch=128)
CURVATURE_EXAMPLES = 1000
SOLVERS = {"pretrain": Lanczos(damping=1e-2, rtol=1e-3), "finetune": Lanczos(damping=1e-4, rtol=1e-3)}
PARTS = ("measured", "query", "whole")

Tasks = tuple[Task, Task]
LeftOut = dict[str, Tensor]
"""By name, the indices that a retraining leaves out."""


def run(settings: Settings, progress: Progress) -> None:
    """Score, leave out and train again, seed by seed; writes `seed-*/`, and after each `gains.png`, `result.json`."""
    folder = settings.folder(DATASET)
    tasks = two_tasks(folder, numbers_of(folder, PRETRAINED))
    done = dict[int, Record]()
    for repeats, shares in ((1, ()), (MODELS, ()), (MODELS, SHARES)):  # what matters most for every seed first
        for seed in range(settings.seed, settings.seed + SEEDS):
            done[seed] = _one_seed(settings, seed, repeats, shares, tasks, progress)
            found = list(done.values())
            first, second = _drawn(settings, settings.seed, tasks)
            fields = {
                "counts": counts(pretrain=first, finetune=second),
                "plans": {"pretrain": repr(PRETRAINING), "finetune": repr(FINETUNING)},
                "models_scored": MODELS,
                "accuracy_in": "percent; gains in points; + = the accuracy rises",
                **_compared(found),
                "seeds": found,
            }
            records.write_result(NAME, settings, fields)
            _draw(settings, fields)


def named(what: str, share: float = MAIN) -> str:
    return f"{what} {share:.0%}"


def shares_of(share: float, scores: Tensor, drawn: Tensor) -> LeftOut:
    """The most harmful share, and as many random examples, which are the first of an order drawn before any score."""
    count = max(1, round(share * len(scores)))
    harmful = scores.argsort(descending=True, stable=True)
    return {named("harmful", share): harmful[:count], named("random", share): drawn[:count]}


def main_drops(scores: Tensor, alone: Tensor, drawn: Tensor) -> LeftOut:
    """What is left out at the main share. scores, alone: `[n]`, of the averaged models and of the seed's own."""
    main = shares_of(MAIN, scores, drawn)
    helpful, one_model = (shares_of(MAIN, each, drawn)[named("harmful")] for each in (-scores, alone))
    return {**main, named("helpful"): helpful, named("one model"): one_model}


def random_order(count: int, seed: int) -> Tensor:
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed))


def _drawn(settings: Settings, seed: int, tasks: Tasks) -> Tasks:
    first, second = tasks
    return first.drawn(settings.examples, seed), second.drawn(settings.most(FINETUNE_EXAMPLES), seed)


def _one_seed(
    settings: Settings, seed: int, repeats: int, shares: Sequence[float], every: Tasks, progress: Progress
) -> Record:
    """The retrainings of one seed, measured: those at the main share, the two that count repeated, and other shares."""
    folder, store = settings.out / f"seed-{seed}", Checkpoints(settings.out / f"seed-{seed}" / "checkpoints")
    first, second = (task.to(settings.device) for task in _drawn(settings, seed, every))
    tasks, plans = (first, second), (PRETRAINING.seeded(seed), FINETUNING.seeded(seed))
    drawn = random_order(len(first.train), seed)
    order, half = random_order(len(second.test), seed), len(second.test) // 2
    halves = {"query": order[:half].sort().values, "measured": order[half:].sort().values}

    several = BatchedStages(store, tasks, plans, progress)

    def train(name: str, draws: Sequence[int], left_out: Sequence[Tensor]) -> list[Pair]:
        seen = torch.ones(len(draws), len(first.train))
        for row, indices in zip(seen, left_out, strict=True):
            row[indices] = 0
        return several.train(name, draws, seen)

    draws, nothing = [seed * 1000 + place for place in range(MODELS)], drawn[:0]
    models = {"none": train("scored", draws, [nothing] * MODELS)}
    traces = [
        _scores(folder / f"run-{place}", seed, pair, tasks, halves["query"], progress)
        for place, pair in enumerate(models["none"])
    ]
    each = torch.stack([scores / scores.std() for scores, _ in traces])
    main = main_drops(each.mean(dim=0), each[0], drawn)
    sets = {name: left for share in shares for name, left in shares_of(share, each.mean(dim=0), drawn).items()}
    others = {name: left for name, left in sets.items() if name not in main}
    for stack, some in (("main", main), ("shares", others)):
        again = train(stack, draws[:1] * len(some), list(some.values()))
        models |= {name: [pair] for name, pair in zip(some, again, strict=True)}
    for what in ("harmful", "random"):
        further = draws[1:repeats]
        models[named(what)] += train(what, further, [main[named(what)]] * len(further))
    left_out = {"none": nothing, **main, **others}
    count = len(each)
    return {
        "seed": seed,
        "models": {n: [_measured(pair, left_out[n], tasks, halves) for pair in some] for n, some in models.items()},
        # the mean correlation of two models' scores
        "agreement_of_scores_between_models": None
        if count < 2
        else ((torch.corrcoef(each).sum() - count) / count / (count - 1)).item(),
        "harmful_examples": _nature(main, models["none"][0], first),
        "scoring": [record for _, record in traces],
    }


def _scores(out: Any, seed: int, pair: Pair, tasks: Tasks, asked: Tensor, progress: Progress) -> tuple[Tensor, Record]:
    """The scores of the pretraining examples for one model, and how they were computed."""
    curvature: Any = {"pretrain": GaussNewton(examples=CURVATURE_EXAMPLES, seed=seed), "finetune": Hessian()}
    chain, query = image_chain((pair.base, pair.model), tasks, Frozen("embedding")), Query(tasks[1].test[asked].dataset)
    result = trace(chain, query, curvature=curvature, solver=SOLVERS, of="pretrain", out=out, progress=progress)
    values = result["pretrain"].values
    return values, {
        "mean_absolute_score": values.abs().mean().item(),
        **records.of_trace(result, curvature, SOLVERS),
        "seconds": result.statistics["seconds"],
    }


def _measured(pair: Pair, left: Tensor, tasks: Tasks, halves: Mapping[str, Tensor]) -> Record:
    """Accuracy in percent and mean loss (nats) of the fine-tuned model, on the halves and the whole test set."""
    first, second = tasks
    kept = torch.ones(len(first.train), dtype=torch.bool)
    kept[left] = False
    seen = first.train[kept.nonzero()[:, 0]]
    logits, labels = logits_of(pair.model, second.test.pixels).cpu(), second.test.labels.cpu()
    right = 100 * (logits.argmax(dim=1) == labels).double()
    losses = F.cross_entropy(logits, labels, reduction="none").double()
    parts = {**halves, "whole": torch.arange(len(labels))}
    return {
        "left_out": len(first.train) - len(seen),
        "accuracy": {name: right[part].mean().item() for name, part in parts.items()},
        "loss": {name: losses[part].mean().item() for name, part in parts.items()},
        "pretraining": {
            "train": quality(logits_of(pair.base, seen.pixels), seen.labels),
            "test": quality(logits_of(pair.base, first.test.pixels), first.test.labels),
        },
        "seconds": pair.seconds,
    }


def _nature(left_out: LeftOut, own: Pair, first: Task) -> Record:
    """The pretraining loss (of the seed's own model, nats) of what is left out at the main share, against all."""
    losses = F.cross_entropy(logits_of(own.base, first.train.pixels), first.train.labels, reduction="none").cpu()
    each = {what: losses[left_out[named(what)]] for what in ("harmful", "random", "helpful")}
    return {f"mean_loss_of_{what}": some.mean().item() for what, some in {"all": losses, **each}.items()}


def _compared(done: list[Record]) -> Record:
    """Paired differences over the seeds: accuracy in points, loss in nats."""

    def less(left: str, right: str, what: str, part: str) -> Record:
        """Over the first weights that both were trained from."""
        pairs = [(found["models"][left], found["models"][right]) for found in done]
        common = [min(len(one), len(other)) for one, other in pairs]
        means = [[_mean(some[:n], what, part) for some in pair] for pair, n in zip(pairs, common, strict=True)]
        return over_seeds([one - other for one, other in means])

    def all_parts(left: str, right: str) -> Record:
        return {what: {part: less(left, right, what, part) for part in PARTS} for what in ("accuracy", "loss")}

    names = [name for name in done[0]["models"] if all(name in found["models"] for found in done)]
    rivals = {name: named("random", share) for share in SHARES for name in names if name.endswith(f" {share:.0%}")}
    of_all = {name: [_mean(found["models"][name], "accuracy", "measured") for found in done] for name in names}
    return {
        "accuracy": {name: over_seeds(values) for name, values in of_all.items()},
        "less_random": {name: all_parts(name, rival) for name, rival in rivals.items() if name != rival},
        "less_none": {name: all_parts(name, "none") for name in names if name != "none"},
    }


def _mean(several: Sequence[Record], what: str, part: str) -> float:
    return sum(model[what][part] for model in several) / len(several)


def _draw(settings: Settings, fields: Record) -> None:
    """Paired gains at the main share, and gains by share."""
    less_none, less_random = (
        {name: found["accuracy"]["measured"] for name, found in fields[what].items()}
        for what in ("less_none", "less_random")
    )
    main = less_random[named("harmful")]
    score_plots.gains(
        settings.out / "gains.png",
        {f"{named(what)}\nless random": less_random[named(what)] for what in ("harmful", "one model", "helpful")},
        {
            what: {share: less_none[named(what, share)] for share in SHARES if named(what, share) in less_none}
            for what in ("harmful", "random")
        },
        note=(
            "Accuracy on the half of the test set that no score has seen. Points: one seed each; bars: mean and 95 % "
            f"t-interval over {main['n']} seed(s).\nMost harmful {MAIN:.0%} (largest positive scores) less random "
            f"{MAIN:.0%}: {format_interval(main)} points. 'One model': by the scores of a single model."
        ),
    )

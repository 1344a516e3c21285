"""`smoothness`: how large a removal the exact derivative of a training predicts, and what is said of it beforehand.

Two stages on MNIST, the digits 0 to 3, then 4 to 9: a small network trained from its initial values, then trained
further with a new head. Ten ways of training (optimiser, rate, length, epsilon, L2). For each the training is recorded
and differentiated; `stagetrace.validation.smoothness` tries a few groups and says how far scores reach; then single
examples and groups, others than were tried, are really left out of the same training (same initial values, same
batches), and the true changes of the query loss are set beside the predicted ones.

Of some ways the scores of hybrids stand beside: the fine-tuning differentiated exactly, and the pretraining idealised,
as training that stopped early (in one segment, and in six by kept states) or as a minimum (the default).
"""

import json
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cache, partial
from pathlib import Path
from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import TensorDataset

from experiments import records
from experiments.images import Images
from experiments.networks import TwoLayers
from experiments.protocol import Experiment, Run, Variant
from experiments.records import Record, over_seeds
from experiments.settings import Settings
from experiments.tasks import Task, two_tasks
from experiments.training import quality
from stagetrace import Auto, Chain, Lanczos, Query, Stage, Unrolled, trace
from stagetrace.objectives import Classification
from stagetrace.progress import Progress
from stagetrace.replay import stopped_early
from stagetrace.results.files import write_text
from stagetrace.results.jsonable import json_text
from stagetrace.results.sign import UNIT
from stagetrace.tracing.ensemble import trained
from stagetrace.validation import SGD, Adam, GroupRemovals, RandomRemovals, RemovalPlan, Steps, Validation
from stagetrace.validation.estimators.estimator import Precomputed
from stagetrace.validation.fits.optimizers import OptimizerSettings
from stagetrace.validation.smoothness import GOOD, Smoothness, Tried, smoothness

NAME = "smoothness"
OURS = "exact derivative"
STAGE = "pretrain"
FIRST_CLASSES = (0, 1, 2, 3)
EXAMPLES, TESTS = 2000, 2000
SIDE, WIDTH = 14, 16
STEPS = {"pretrain": 1000, "finetune": 500}
BATCH = 100
SINGLES, GROUPS = 24, 20
SHARES = (0.02, 0.1)
HYBRIDS = ("SGD 0.005", "SGD 0.01", "Adam 5e-4", "Adam 1e-3")
"""The ways of which hybrids are scored, too."""
SEGMENTS = {"exact, then stopped early": 1, "exact, then stopped early in 6 segments": 6}
MINIMUM = "exact, then a minimum"
OTHER_DRAW = 1000
"""Added to the seed for the groups that are tried beforehand."""


@final
@dataclass(frozen=True)
class Way:
    """One way of training both stages. longer: times the number of steps. decay: L2 in the loss of both."""

    optimizer: OptimizerSettings
    longer: int = 1
    decay: float = 0.0


WAYS = {
    "SGD 0.005": Way(SGD(0.005, 0.9)),
    "SGD 0.01": Way(SGD(0.01, 0.9)),
    "SGD 0.03": Way(SGD(0.03, 0.9)),
    "SGD 0.005, three times the steps": Way(SGD(0.005, 0.9), longer=3),
    "SGD 0.03, L2 0.01": Way(SGD(0.03, 0.9), decay=0.01),
    "Adam 5e-4": Way(Adam(5e-4)),
    "Adam 1e-3": Way(Adam(1e-3)),
    "Adam 2e-3": Way(Adam(2e-3)),
    "Adam 1e-3, epsilon 1e-3": Way(Adam(1e-3, eps=1e-3)),
    "Adam 1e-2, epsilon 1e-2": Way(Adam(1e-2, eps=1e-2)),
}
"""SGD has a momentum of 0.9; rates fall to 0 along a cosine."""


@final
@dataclass(frozen=True)
class Before:
    """What is known of one training before any truth is measured.

    effects: predicted change of the query loss for leaving each pretraining example out. facts: of both stages.
    """

    effects: Sequence[float]
    facts: Record
    said: Smoothness


@final
@dataclass(frozen=True)
class Prepared:
    """The chain of each way of training, not trained yet, and the query."""

    chains: dict[str, Chain]
    query: Query
    facts: Record = field(default_factory=dict)


def prepare(settings: Settings, progress: Progress) -> Prepared:
    """Both tasks' features, drawn by the seed, and a chain a way, which the library trains from this seed."""
    del progress
    tasks = [task.drawn(settings.most(EXAMPLES), settings.seed) for task in _tasks(settings.folder("mnist"))]
    pixels = [_pooled(task.train) for task in tasks]
    shift, scale = pixels[0].mean(), pixels[0].std()
    data = [TensorDataset((x - shift) / scale, task.train.labels) for x, task in zip(pixels, tasks, strict=True)]
    test = tasks[1].test.drawn(TESTS, settings.seed)
    query = Query(TensorDataset((_pooled(test) - shift) / scale, test.labels), batch_size=TESTS)
    classes = [len(task.classes) for task in tasks]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        chains = {name: _chain(way, data, classes, settings.seed) for name, way in WAYS.items()}
    return Prepared(chains, query, {"examples": [len(each) for each in data], "tests": len(test)})


@cache
def _tasks(folder: Path) -> tuple[Task, Task]:
    """Read once for all seeds."""
    return two_tasks(folder, FIRST_CLASSES)


def _pooled(images: Images) -> Tensor:
    side = min(SIDE, *images.pixels.shape[2:])
    return F.adaptive_avg_pool2d(images.pixels.double(), side).flatten(1)


def _chain(way: Way, data: list[TensorDataset], classes: list[int], seed: int) -> Chain:
    inputs = data[0].tensors[0].shape[1]
    stages = [
        Stage(
            name,
            model=TwoLayers(
                inputs, WIDTH, outputs
            ).double(),  # values are drawn anew, by the seed, where training begins
            objective=Classification(),
            data=examples,
            weight_decay=way.decay,
            batch_size=len(examples),
            link=Unrolled(shared, _steps(way, name), seeds=(seed,)),
        )
        for (name, shared), examples, outputs in zip(
            {"pretrain": (), "finetune": "embedding"}.items(), data, classes, strict=True
        )
    ]
    return Chain(*stages)


def _steps(way: Way, stage: str) -> Steps:
    return Steps(way.optimizer, way.longer * STEPS[stage], BATCH, start="cold", schedule="cosine")


def choices(seed: int) -> list[RemovalPlan]:
    """Drawn by the seed, without a look at any score."""
    return [RandomRemovals(SINGLES, seed=seed), *(GroupRemovals(share, GROUPS, seed=seed) for share in SHARES)]


def variants(prepared: Prepared, settings: Settings) -> Iterator[Variant]:
    """Each way of training: what is said beforehand first, then the truth."""
    for name, chain in prepared.chains.items():
        out = settings.out / name.replace(" ", "-").replace(",", "")
        before = _beforehand(chain, prepared.query, settings.seed, out)
        effects = {OURS: before.effects, **(_hybrids(name, chain, prepared.query, settings.seed, out))}
        yield Variant(
            (name,),
            chain,
            prepared.query,
            None,
            choices(settings.seed),
            [Precomputed(n, UNIT, torch.tensor(found).double()) for n, found in effects.items()],
            out / "again",
            runs=(settings.seed,),
            together=SINGLES + len(SHARES) * GROUPS,
            processes=1,
            drawn=False,
            record=partial(_record, before),
        )


def _beforehand(chain: Chain, query: Query, seed: int, out: Path) -> Before:
    """The scores and the verdict of one training; kept, and found by a later call."""
    path = out / "beforehand.json"
    if path.is_file():
        kept = json.loads(path.read_text())
        tried = tuple(_tried(one) for one in kept["said"]["tried"])
        said = Smoothness(STAGE, kept["said"]["examples"], tried)
        return Before(kept["effects"], kept["facts"], said)
    with tempfile.TemporaryDirectory() as folder:
        recorded = trained(chain, Path(folder), seed)
        scores = trace(recorded, query, of=[STAGE])[STAGE]
        effects = scores.removal_effect.tolist()
        facts = _facts(recorded, query)
    said = smoothness(chain, query, STAGE, scores=scores, seed=OTHER_DRAW + seed)
    write_text(path, json_text({"effects": effects, "facts": facts, "said": asdict(said)}, "beforehand"))
    return Before(effects, facts, said)


def _tried(kept: Record) -> Tried:
    several = {name: tuple(kept[name]) for name in ("predicted", "measured")}
    weights = None if kept["weights"] is None else tuple(kept["weights"])
    return Tried(kept["size"], **several, spread=kept["spread"], weights=weights)


def _hybrids(name: str, chain: Chain, query: Query, seed: int, out: Path) -> dict[str, list[float]]:
    """Predictions with the pretraining idealised in several ways, over all examples; kept as well."""
    path = out / "hybrids.json"
    if name not in HYBRIDS:
        return {}
    if path.is_file():
        return json.loads(path.read_text())
    with tempfile.TemporaryDirectory() as folder:
        exact = trained(chain, Path(folder), seed)
        bound = exact[STAGE]
        hybrid = Chain(replace(bound.stage, link=None, weight_decay=WAYS[name].decay), exact.stages[1])
        solvers = {name: stopped_early(bound, bound.recording, segments=n) for name, n in SEGMENTS.items()}
        found = {
            name: trace(hybrid, query, of=[STAGE], curvature={STAGE: Auto(examples=None)}, solver={STAGE: solver})
            for name, solver in {**solvers, MINIMUM: Lanczos()}.items()
        }
    effects = {name: result[STAGE].removal_effect.tolist() for name, result in found.items()}
    write_text(path, json_text(effects, "hybrids"))
    return effects


def _facts(chain: Chain, query: Query) -> Record:
    """How well the last model does on the query, and the pretrained one on what it learned."""
    with torch.no_grad():
        found = {}
        for name, stage, data in (("pretrain", chain.stages[0], None), ("finetune", chain.stages[1], query.data)):
            features, labels = (data or stage.data).tensors
            found[name] = quality(stage.model(features), labels)
    return found


def _record(before: Before, validation: Validation) -> Record:
    """Agreement for each choice, with what was said of its size beforehand."""
    found, said = records.of_validation(validation), before.said
    for measured in validation.measured:
        size = len(measured.removals[0])
        tried = next((each for each in said.tried if each.size == size), None)
        r = measured.agreement[OURS].pearson_r
        choice = measured.choice.partition(", seed")[0]  # as `of_validation` calls it
        found["choices"][choice]["beforehand"] = {
            "size": size,
            "expected": None if tried is None else tried.expected,
            "at_least": None if tried is None else tried.at_least,
            "said_to_hold": size <= said.holds_for,
            "held": None if r is None else r >= GOOD,
        }
    return {**found, "quality": before.facts, "holds_for": said.holds_for, "tried": [asdict(t) for t in said.tried]}


def summary(run: Run) -> Record:
    """Mean and 95 % t-interval of r over seeds, by way of training and size; and every false assurance."""
    rows, false = Record(), list[str]()
    for (name,), seeds in run.found.items():
        rows[name] = {
            "accuracy": over_seeds([seed["quality"]["finetune"]["accuracy"] for seed in seeds]),
            "query_loss": over_seeds([seed["quality"]["finetune"]["loss"] for seed in seeds]),
        }
        for choice in seeds[0]["choices"]:
            each = [seed["choices"][choice] for seed in seeds]
            agreement = [one["estimators"][OURS] for one in each]
            rows[name][choice] = {
                **_over_seeds(agreement),
                "beforehand": [one["beforehand"] for one in each],
                "hybrids": {
                    other: _over_seeds([one["estimators"][other] for one in each])
                    for other in each[0]["estimators"]
                    if other != OURS
                },
            }
            for seed, one in zip(seeds, each, strict=True):
                told = one["beforehand"]
                if told["said_to_hold"] and told["held"] is False:
                    r = one["estimators"][OURS]["pearson_r"]
                    false.append(f"{name}, seed {seed['seed']}, {choice}: said to hold, r {r:.3f}")
    return {"ways": rows, "false_assurances": false}


def _over_seeds(agreement: Sequence[Record]) -> Record:
    return {figure: over_seeds([one[figure] for one in agreement]) for figure in ("pearson_r", "spearman_r", "slope")}


def _fields(run: Run) -> Record:
    return {
        "protocol": {name: repr(way) for name, way in WAYS.items()} | {"steps": STEPS, "batch_size": BATCH},
        "data": next(iter(run.training.values())),
        "summary": summary(run),
        "failed": run.failed,
        "seeds": {name: seeds for (name,), seeds in run.found.items()},
        "seconds": run.seconds,
    }


EXPERIMENT = Experiment(
    NAME,
    seeds=2,
    prepare=prepare,
    training=lambda prepared: prepared.facts,
    variants=variants,
    fields=_fields,
)

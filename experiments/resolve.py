"""`resolve`: scores against stages really solved again, with the embedding kept and updated, and for whole groups.

Every stage is at a strict minimum, with and without an example (`tiny_chain.py`); random choices are drawn before any
score is computed. `docs/experiments/resolve.md` says why each variant is there.

plain           the stages as they are; groups for the first seed and the kept embedding only, since each takes minutes
proximal PULL   a pull of `PULL / 2 |x - trained|^2` on every stage; the prediction is the solve damped by as much
adam            groups only, first seed: both stages trained by Adam from scratch, several runs a group
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from experiments import agreement_plots, records
from experiments.checkpoints import Checkpoints
from experiments.estimators import IDENTITY, OURS, controls, shifted
from experiments.protocol import Experiment, Run, Variant
from experiments.records import Record
from experiments.settings import Settings
from experiments.tiny_chain import LINKS, Solved, solved
from stagetrace import GaussNewton, Hessian, Identity, Lanczos
from stagetrace.progress import Progress
from stagetrace.validation import (
    Adam,
    Estimator,
    GroupRemovals,
    Influence,
    RandomRemovals,
    RemovalPlan,
    Resolve,
    SingleStage,
    Steps,
    TopRemovals,
)

DATASETS: dict[str, tuple[int, ...]] = {"mnist": (0, 1, 2, 3), "cifar10": (2, 6)}
"""The classes of the first stage; CIFAR-10's are bird and frog."""
COUNT = 50
PROXIMITIES = (0.1, 0.01)
SHARES = (0.02, 0.1, 0.5)
COLD = Steps(Adam(3e-3), steps=600, batch_size=250, start="cold", schedule="cosine")
COLD_RUNS = 5

Prepared = dict[tuple[str, str], Solved]
"""By data set and link."""


def folder(settings: Settings, dataset: str) -> Path:
    """Where a data set's stages and retrainings lie."""
    return settings.root / dataset / f"seed-{settings.seed}"


def prepare(settings: Settings, progress: Progress) -> Prepared:
    """All data sets, or the one of `--dataset`, each with both links."""
    found = Prepared()
    for name in [settings.dataset] if settings.dataset else DATASETS:
        dataset = Path(name).name
        store = Checkpoints(folder(settings, dataset))
        for link, chain in solved(settings, name, DATASETS.get(dataset, (0, 1, 2, 3)), store, progress).items():
            found[dataset, link] = chain
    return found


def singles(seed: int) -> list[RemovalPlan]:
    """A tenth of an example out, and whole ones."""
    return [TopRemovals(COUNT, by=0.1), TopRemovals(COUNT), RandomRemovals(COUNT, seed=seed)]


def groups(seed: int) -> list[RemovalPlan]:
    return [GroupRemovals(share, COUNT, seed=seed) for share in SHARES]


def variants(prepared: Prepared, settings: Settings) -> Iterator[Variant]:
    """Every way of training again, for every data set and link."""
    seed, first = settings.seed, settings.out == settings.root
    one, every = singles(seed), [*singles(seed), *groups(seed)]
    for (dataset, link), chain in prepared.items():

        def variant(name: str, damping: float, fit: Any, choices: Sequence[RemovalPlan], **options: Any) -> Variant:
            out = folder(settings, dataset) / f"{link}-{name}".replace(" ", "-")  # noqa: B023
            where, estimators = (dataset, link, name), _estimators(damping, seed)  # noqa: B023
            return Variant(where, chain.chain, chain.query, fit, choices, estimators, out, **options)  # noqa: B023

        for pull in PROXIMITIES:
            yield variant(f"proximal {pull:g}", pull, Resolve(proximity=pull), every)
        yield variant("plain", 0.0, Resolve(), every if first and link == "frozen" else one)
        if first:
            options: Any = {"runs": range(COLD_RUNS), "together": 25, "drawn": False}
            yield variant("adam", PROXIMITIES[-1], COLD, groups(seed), **options)


def _estimators(damping: float, seed: int) -> list[Estimator]:
    """Ours, solved as exactly as the truth is, and the controls."""
    solver = shifted(damping, rtol=1e-6, max_steps=5000)
    return [
        Influence(Hessian(), solver, name=OURS),
        Influence(GaussNewton(), solver, name="multi-stage, Gauss-Newton"),
        Influence(Hessian(), Lanczos(damping=1e-2, rtol=1e-6), name="multi-stage, H^2 + 0.01"),
        Influence(Identity(), name=IDENTITY),
        SingleStage(Hessian(), solver),
        *controls("embedding", seed),
    ]


def summary(run: Run) -> Record:
    """Mean and 95 % t-interval over seeds of each figure of ours, and Spearman's of each control."""
    rows = Record()
    for where, seeds in run.found.items():
        for choice in seeds[0]["choices"]:
            found = records.summary([seed["choices"][choice] for seed in seeds if choice in seed["choices"]])
            own, others = found["estimators"].pop(OURS), found["estimators"]
            controls = {name: entry["spearman_r"]["mean"] for name, entry in others.items()}
            rows[f"{', '.join(where)}: {choice}"] = {**own, "n": found["n"], "spearman_r_of_controls": controls}
    return rows


def _fields(run: Run) -> Record:
    found = run.nested()
    for seed, chains in run.training.items():
        for (dataset, link), facts in chains.items():
            found.setdefault(dataset, {}).setdefault(link, {}).setdefault("stages", {})[str(seed)] = facts
    return {
        "protocol": {"links": {name: repr(link) for name, link in LINKS.items()}, "adam": repr(COLD)},
        "summary": summary(run),
        "failed": run.failed,
        "data_sets": found,
        "seconds": run.seconds,
    }


def _draw(run: Run) -> None:
    """Panel -> estimator -> share -> mean over seeds of the linear datamodelling score."""
    drawn = dict[str, dict[str, dict[str, float]]]()
    for title, row in summary(run).items():
        where, choice = title.split(": ")
        if "groups" in choice:
            share, panel = choice.split(" of ")[1], drawn.setdefault(where, {})
            for name, value in {OURS: row["spearman_r"]["mean"], **row["spearman_r_of_controls"]}.items():
                panel.setdefault(name, {})[share] = value
    path, label = run.settings.out / "groups.png", "linear datamodelling score (Spearman over groups)"
    agreement_plots.by_share(path, drawn, label)


EXPERIMENT = Experiment(
    "resolve",
    seeds=3,
    prepare=prepare,
    training=lambda prepared: {where: chain.facts for where, chain in prepared.items()},
    variants=variants,
    fields=_fields,
    headline=OURS,
    draw=_draw,
)

"""`resolve`: scores against stages really solved again, with the embedding kept and updated, and for whole groups.

What the influence function defines: every stage at a strict minimum, with and without an example. Small networks in
float64 (`small.py`) make that affordable: hundreds of examples, and groups of 2, 10 and 50 % of the pretraining data.

plain             the stages as they are; flat directions of a minimum then move far, or to another minimum
proximal 0.1      a pull of `0.1 / 2 |x - trained|^2` on every stage: the well-posed variant (Bae et al. 2022), as large
                  as the paper's damping (1e-2 on H^2 acts where the curvature is 0.1); the prediction is the solve
                  damped by as much
proximal 0.01     a tenth of that pull
adam              groups only, first seed: both stages trained by Adam from scratch, several runs a group

Without a pull, groups are solved again for the first seed and the kept embedding only: without one a group's minimum is
far away, and each takes minutes. A variant that did not converge is reported as failed, with the reason.
The random examples and groups are drawn by the seed before any score is computed.
"""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments.agreement_figures import panels, points
from experiments.intervals import over_seeds
from experiments.recorded import recorded
from experiments.result import write_result
from experiments.settings import Settings
from experiments.small import LINKS, solved, splits
from stagetrace import GaussNewton, Hessian, Identity, Lanczos
from stagetrace.errors import SolveError
from stagetrace.progress import Progress
from stagetrace.solvers import Shift
from stagetrace.validation import (
    Adam,
    Choice,
    Drawn,
    EmbeddingSimilarity,
    Estimator,
    Fit,
    GradientDot,
    Groups,
    Influence,
    Largest,
    Random,
    Resolve,
    SingleStage,
    Steps,
    Validation,
    validate,
)

NAME = "resolve"
DATASETS: dict[str, tuple[int, ...]] = {"mnist": (0, 1, 2, 3), "cifar10": (2, 6)}
"""The classes of the first stage; CIFAR-10's are bird and frog."""
SEEDS = 3
COUNT = 50
PROXIMITIES = (0.1, 0.01)
SHARES = (0.02, 0.1, 0.5)
OURS = "multi-stage influence"
COLD = Steps(Adam(3e-3), steps=600, batch_size=250, start="cold", schedule="cosine")
COLD_RUNS = 5


def run(settings: Settings, progress: Progress) -> None:
    """All data sets (or the one of `--dataset`), links, variants and seeds; every retraining is kept as it ends."""
    started = time.perf_counter()
    found: dict[str, Any] = {}
    drawings: dict[str, list[Validation]] = {}
    failed: dict[str, str] = {}
    names = [settings.dataset] if settings.dataset else list(DATASETS)
    for name in names:
        dataset = Path(name).name
        for seed in range(settings.seed, settings.seed + SEEDS):
            folder = settings.out / dataset / f"seed-{seed}"
            first, second = splits(settings, name, DATASETS.get(dataset, (0, 1, 2, 3)), seed)
            chains = solved(first, second, seed, folder, progress)
            for link in LINKS:
                for variant, damping, fit, choices, runs in _variants(seed, link, first=seed == settings.seed):
                    try:
                        validation = validate(
                            chains[link].chain,
                            chains[link].query,
                            fit=fit,
                            choices=choices,
                            estimators=_estimators(damping, seed),
                            seeds=runs,
                            together=25 if variant == "adam" else 8,
                            out=folder / f"{link}-{variant}".replace(" ", "-"),
                            progress=progress,
                        )
                    except SolveError as failure:
                        failed[f"{dataset}, {link}, {variant}, seed {seed}"] = str(failure)
                        continue
                    drawings.setdefault(f"{dataset}, {link}, {variant}", []).append(validation)
                    entry = found.setdefault(dataset, {}).setdefault(link, {})
                    entry.setdefault(variant, []).append({"seed": seed, **recorded(validation)})
                    entry.setdefault("stages", {})[str(seed)] = chains[link].facts
                    _write(settings, found, failed, drawings, time.perf_counter() - started)


def _variants(seed: int, link: str, *, first: bool) -> list[tuple[str, float, Fit, Sequence[Choice], Sequence[int]]]:
    """Name, damping of the prediction, training, removals and runs."""
    singles = [Largest(COUNT, by=0.1), Largest(COUNT), Drawn(COUNT, seed=seed)]
    groups = [Groups(share, COUNT, seed=seed) for share in SHARES]
    found: list[tuple[str, float, Fit, Sequence[Choice], Sequence[int]]] = [
        (f"proximal {pull:g}", pull, Resolve(proximity=pull), [*singles, *groups], (0,)) for pull in PROXIMITIES
    ]
    found.append(("plain", 0.0, Resolve(), [*singles, *groups] if first and link == "frozen" else singles, (0,)))
    if first:
        found.append(("adam", PROXIMITIES[-1], COLD, groups, range(COLD_RUNS)))
    return found


def _estimators(damping: float, seed: int) -> list[Estimator]:
    """Ours, solved as exactly as the truth is, and the controls."""
    solver = Lanczos(damping=damping, filter=Shift, rtol=1e-6, max_steps=5000)
    return [
        Influence(Hessian(), solver, name=OURS),
        Influence(GaussNewton(), solver, name="multi-stage, Gauss-Newton"),
        Influence(Hessian(), Lanczos(damping=1e-2, rtol=1e-6), name="multi-stage, H^2 + 0.01"),
        Influence(Identity(), name="identity curvature"),
        SingleStage(Hessian(), solver),
        GradientDot(),
        EmbeddingSimilarity("embedding"),
        Random(seed),
    ]


def summary(found: dict[str, Any]) -> dict[str, Any]:
    """Mean and 95 % t-interval over seeds of each figure of ours, and Spearman's of each control."""
    rows: dict[str, Any] = {}
    for dataset, links in found.items():
        for link, variants in links.items():
            for variant, seeds in variants.items():
                if variant == "stages":
                    continue
                for choice in seeds[0]["choices"]:
                    each = [seed["choices"][choice]["estimators"] for seed in seeds if choice in seed["choices"]]
                    row = {
                        figure: over_seeds([one[OURS][figure] for one in each])
                        for figure in ("pearson_r", "spearman_r", "slope", "without_largest")
                    }
                    controls = {
                        name: over_seeds([one[name]["spearman_r"] for one in each]) for name in each[0] if name != OURS
                    }
                    rows[f"{dataset}, {link}, {variant}: {choice}"] = {
                        **row,
                        "n": each[0][OURS]["n"],
                        "spearman_r_of_controls": {name: entry["mean"] for name, entry in controls.items()},
                    }
    return rows


def _write(
    settings: Settings,
    found: dict[str, Any],
    failed: dict[str, str],
    drawings: dict[str, list[Validation]],
    seconds: float,
) -> None:
    plotted = {name: runs for name, runs in drawings.items() if not name.endswith("adam")}
    panels(
        settings.out / "agreement.png", {name: [run.measured for run in runs] for name, runs in plotted.items()}, OURS
    )
    points(settings.out / "groups.png", _lds(found), "linear datamodelling score (Spearman over groups)")
    write_result(
        NAME,
        settings,
        {
            "protocol": {
                "links": {name: repr(link) for name, link in LINKS.items()},
                "adam": repr(COLD),
            },
            "summary": summary(found),
            "failed": failed,
            "data_sets": found,
            "seconds": seconds,
        },
    )


def _lds(found: dict[str, Any]) -> dict[str, dict[str, dict[str, float]]]:
    """Panel -> estimator -> share -> mean over seeds."""
    drawn: dict[str, dict[str, dict[str, float]]] = {}
    for title, row in summary(found).items():
        where, choice = title.split(": ")
        if "groups" not in choice:
            continue
        share = choice.split(" of ")[1]
        panel = drawn.setdefault(where, {})
        panel.setdefault(OURS, {})[share] = row["spearman_r"]["mean"]
        for name, value in row["spearman_r_of_controls"].items():
            panel.setdefault(name, {})[share] = value
    return drawn

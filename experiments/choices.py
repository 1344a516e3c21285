"""`choices`: what to choose when. Dampings, curvatures, subsets, alpha and polishing, each against the same truth.

adam        the small networks as Adam left them, and polished to their minimum first; the truth is more of that Adam
continued   the first seeds of `mnist-frozen`, `cifar-frozen` and `cifar-updated`, not at a minimum, trained on
            (a copy of those folders under OUT saves training them again)
minimum     small networks at their strict minima, solved again without a pull and with the pull of 0.1 (`resolve`)
"""

import json
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch

import stagetrace
from experiments import paper, resolve
from experiments.checkpoints import Checkpoints
from experiments.estimators import alpha_override, polished, shifted, with_alpha
from experiments.protocol import Variant
from experiments.records import Record, write_result
from experiments.settings import Settings
from experiments.tiny_chain import Solved, solved
from stagetrace import Chain, GaussNewton, Hessian, Lanczos
from stagetrace.curvature import Auto
from stagetrace.errors import DescriptionError
from stagetrace.progress import Progress
from stagetrace.stages.revalued import with_values
from stagetrace.validation import (
    Adam,
    Estimator,
    GroupRemovals,
    Influence,
    RandomRemovals,
    Resolve,
    Steps,
    TopRemovals,
    Validation,
)

NAME = "choices"
SIZES = (1e-2, 3e-2, 1e-1, 3e-1)
"""Where a damping of H^2 cuts off: its square root, in units of curvature."""
SUBSETS = (100, 300, 1000)
ALPHAS: tuple[float | str, ...] = ("auto", 1e-3, 1e-2, 1e-1, 1.0, 10.0)
ON = Steps(Adam(1e-3), steps=300, batch_size=250)
FROM_SCRATCH = Steps(Adam(3e-3), steps=600, batch_size=250, start="cold", schedule="cosine")
FIGURES = ("pearson_r", "spearman_r", "slope", "n")


def run(settings: Settings, progress: Progress) -> None:
    """Each table is written as it ends; those that an earlier call of the same settings and version wrote are kept."""
    started = time.perf_counter()
    here = settings.of_seed(settings.seed)
    tables, before = _kept(settings)
    for part in (_as_adam_left_them, _continued, _at_minima):
        for variant in part(here, progress):
            name, title = variant.where
            if title not in tables.setdefault(name, {}):
                tables[name][title] = table(variant.validate(progress))
                write_result(NAME, settings, {"tables": tables, "seconds": before + time.perf_counter() - started})


def _kept(settings: Settings) -> tuple[Record, float]:
    """The tables that are there already, and the seconds they took."""
    path = settings.out / "result.json"
    kept = json.loads(path.read_text()) if path.exists() else {}
    asked = {"seed": settings.seed, "examples": settings.examples, "dataset": settings.dataset_name}
    if kept.get("asked") != asked or kept["versions"]["stagetrace"] != stagetrace.__version__:
        return {}, 0.0
    return kept["tables"], kept["seconds"]


def table(validation: Validation) -> Record:
    """By choice of examples and estimator: r, Spearman, slope."""
    return {
        measured.choice: {
            name: {figure: getattr(agreement, figure) for figure in FIGURES}
            for name, agreement in measured.agreement.items()
        }
        for measured in validation.measured
    }


def _continued(settings: Settings, progress: Progress) -> Iterator[Variant]:
    auto = Lanczos(max_steps=2000)
    for plan in (paper.MNIST_FROZEN, paper.CIFAR_FROZEN, paper.CIFAR_UPDATED):
        folder = settings.out / plan.name
        here = replace(settings, out=folder, root=folder)
        prepared = paper.prepare(plan, here, progress)
        hessian, seed = plan.curvatures(Hessian, settings.seed), settings.seed
        cut = {size: Lanczos(damping=size**2, max_steps=2000) for size in SIZES}
        sweep = paper.estimators(plan, seed)[:2]
        for order, name in ((1, "H^2 + {:g}^2, then auto"), (-1, "H^2 + auto, then {:g}^2")):
            for size, solver in cut.items():
                pair = dict(zip(paper.STAGES[::order], (solver, auto), strict=True))
                sweep.append(Influence(hessian, pair, name=name.format(size)))
        for size in (1e-2, 1e-1):
            positive, solver = plan.curvatures(GaussNewton, seed), shifted(size, max_steps=2000)
            sweep.append(Influence(positive, solver, name=f"Gauss-Newton + {size:g}"))
        for count in SUBSETS:
            fewer = {**hessian, "pretrain": Hessian(examples=count)}
            sweep.append(Influence(fewer, auto, name=f"auto, {count} examples in the pretraining Hessian"))
        if not plan.frozen:
            sweep += _with_alphas(prepared.chain, sweep[1])
        yield replace(paper.variant(plan, prepared, here, sweep), where=("continued", plan.name))


def _at_minima(settings: Settings, progress: Progress) -> Iterator[Variant]:
    for name, link, chain in _small_chains(settings, progress):
        for variant, pull in (("proximal 0.1", 0.1), ("plain", 0.0)):
            # without the pull a group sends the network to another minimum: `resolve` shows that truth by itself
            removed = resolve.singles(settings.seed) + (resolve.groups(settings.seed) if pull else [])
            sweep: list[Estimator] = [
                Influence(Hessian(), shifted(pull, rtol=1e-6, max_steps=5000), name="matched"),
                Influence(Hessian(), Lanczos(max_steps=3000), name="auto"),
            ]
            for size in SIZES:
                added = shifted(size, rtol=1e-5, max_steps=3000)
                sweep.append(Influence(Hessian(), Lanczos(damping=size**2, max_steps=3000), name=f"H^2 + {size:g}^2"))
                sweep.append(Influence(Hessian(), added, name=f"H + {size:g}"))
                sweep.append(Influence(GaussNewton(), added, name=f"Gauss-Newton + {size:g}"))
            yield Variant(
                where=("minimum", f"{name}, {link}, {variant}"),
                chain=chain.chain,
                query=chain.query,
                fit=Resolve(proximity=pull) if pull else Resolve(),
                choices=removed,
                estimators=sweep,
                out=_folder(settings, name) / f"{link}-{variant}".replace(" ", "-"),
            )


def _as_adam_left_them(settings: Settings, progress: Progress) -> Iterator[Variant]:
    default, exact = Auto(examples=None), Lanczos(damping=0.0, rtol=1e-6, max_steps=5000)
    gauss_newton = GaussNewton(), Lanczos(damping=1e-4)
    for name, link, solved_chain in _small_chains(settings, progress):
        chain = _trained_by_adam(solved_chain.chain, settings.seed)
        sweep: list[Estimator] = [
            Influence(Hessian(), name="as it is, Hessian^2 + auto"),
            Influence(default, name="as it is, the default"),
            Influence(default, exact, name="as it is, plain inverse"),
            Influence(*gauss_newton, name="as it is, Gauss-Newton^2 + 1e-4"),
            polished(Influence(Hessian()), "polished, auto"),
            polished(Influence(default, exact), "polished, plain inverse"),
            polished(Influence(*gauss_newton), "polished, Gauss-Newton^2 + 1e-4"),
        ]
        if link == "updated":
            sweep += _with_alphas(chain, Influence(default))
        count, seed = resolve.COUNT, settings.seed
        yield Variant(
            where=("adam", f"{name}, {link}"),
            chain=chain,
            query=solved_chain.query,
            fit=ON,
            choices=[TopRemovals(count), RandomRemovals(count, seed=seed), GroupRemovals(0.1, seed=seed)],
            estimators=sweep,
            runs=range(3),
            together=25,
            out=settings.out / "adam" / name / link,
        )


def _folder(settings: Settings, dataset: str) -> Any:
    return resolve.folder(replace(settings, root=settings.out / "resolve"), dataset)


def _small_chains(settings: Settings, progress: Progress) -> Iterator[tuple[str, str, Solved]]:
    """Data set, link, chain."""
    for name, classes in resolve.DATASETS.items():
        for link, chain in solved(settings, name, classes, Checkpoints(_folder(settings, name)), progress).items():
            yield name, link, chain


def _with_alphas(chain: Chain, inner: Estimator) -> list[Estimator]:
    """The pulls to compare, "auto" by what it estimates; it has no estimate where nothing pulls back."""
    found = list[Estimator]()
    for alpha in ALPHAS:
        name = f"alpha {alpha}"
        if alpha == "auto":
            try:
                name += f" ({with_alpha(chain, alpha).last.link_settings['alpha']:.2g})"
            except DescriptionError:
                continue
        found.append(alpha_override(alpha, inner, name))
    return found


def _trained_by_adam(chain: Chain, seed: int) -> Chain:
    """The chain's stages trained from scratch, one after the other."""
    before, stages = None, list[Any]()
    for bound in chain.bound_stages:
        weights = torch.ones(1, len(bound.stage.examples), dtype=torch.float64)
        before = FROM_SCRATCH(bound, weights, before, seed)
        stages.append(with_values(bound.stage, {name: value[0] for name, value in before.items()}))
    return Chain(*stages)

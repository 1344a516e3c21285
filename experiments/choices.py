"""`choices`: what to choose when. Dampings, curvatures, subsets, alpha and polishing, each against the same truth.

Two kinds of truth, for the same questions:

continued   networks trained by Adam and not at a minimum, one example taken out, trained on (`mnist-frozen`,
            `cifar-frozen`, `cifar-updated`, first seed; a copy of those folders under OUT saves training them again)
minimum     small networks at their strict minima, examples and groups taken out, solved again without a pull and with
            the pull of 0.1 (`resolve`, first seed)
adam        the small networks as Adam left them, and polished to their minimum first; the truth is more of that Adam

The rule behind `damping="auto"` was fixed on another seed before these were computed.
"""

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, final

import torch
from torch import Tensor

import stagetrace
from experiments import cifar_frozen, cifar_updated, mnist_frozen, paper, resolve
from experiments.other_alpha import WithAlpha
from experiments.result import dataset_name, write_result
from experiments.settings import Settings
from experiments.small import LINKS, solved, splits
from stagetrace import Chain, GaussNewton, Hessian, Lanczos, Query
from stagetrace.curvature import Auto
from stagetrace.errors import DescriptionError
from stagetrace.progress import Progress
from stagetrace.solvers import Shift
from stagetrace.validation import (
    Adam,
    Drawn,
    Estimator,
    Groups,
    Influence,
    Largest,
    Resolve,
    Steps,
    Validation,
    polish,
    validate,
)
from stagetrace.validation.handing_on import with_values

NAME = "choices"
SIZES = (1e-2, 3e-2, 1e-1, 3e-1)
"""Where a damping of H^2 cuts off: its square root, in units of curvature."""
ALL = Auto(examples=None)
"""The default's matrix over all examples, whatever its rule."""

SUBSETS = (100, 300, 1000)
ALPHAS: tuple[float | str, ...] = ("auto", 1e-3, 1e-2, 1e-1, 1.0, 10.0)
ON = Steps(Adam(1e-3), steps=300, batch_size=250)
FROM_SCRATCH = Steps(Adam(3e-3), steps=600, batch_size=250, start="cold", schedule="cosine")


def run(settings: Settings, progress: Progress) -> None:
    """Each part is written as it ends."""
    started = time.perf_counter()
    found, before = _kept(settings)
    parts = {
        "adam": _as_adam_left_them(settings, progress),
        "continued": _continued(settings, progress),
        "minimum": _at_minima(settings, progress),
    }
    for part, tables in parts.items():
        for title, validated in tables:
            if title not in found.setdefault(part, {}):
                found[part][title] = table(validated())
                write_result(NAME, settings, {"tables": found, "seconds": before + time.perf_counter() - started})


def _kept(settings: Settings) -> tuple[dict[str, Any], float]:
    """The tables that an earlier call of the same settings and version had finished, and the seconds they took."""
    path = settings.out / "result.json"
    kept = json.loads(path.read_text()) if path.exists() else {}
    asked = {"seed": settings.seed, "examples": settings.examples, "dataset": dataset_name(settings)}
    if kept.get("asked") != asked or kept["versions"]["stagetrace"] != stagetrace.__version__:
        return {}, 0.0
    return kept["tables"], kept["seconds"]


def table(validation: Validation) -> dict[str, Any]:
    """By choice of examples and estimator: r, Spearman, slope."""
    return {
        measured.choice: {
            name: {"pearson_r": a.pearson_r, "spearman_r": a.spearman_r, "slope": a.slope, "n": a.n}
            for name, a in measured.agreement.items()
        }
        for measured in validation.measured
    }


def _continued(settings: Settings, progress: Progress) -> Any:
    for plan in (mnist_frozen.PLAN, cifar_frozen.PLAN, cifar_updated.PLAN):
        here = replace(settings, out=settings.out / plan.name)
        both = paper.train_both(plan, here, progress)
        examples = {stage: plan.hessian_examples(stage) for stage in paper.STAGES}
        sweep: list[Estimator] = paper.estimators(plan, settings.seed)[:2]
        for size in SIZES:
            sweep.append(_influence(f"H^2 + {size:g}^2, then auto", examples, size, None))
        for size in SIZES:
            sweep.append(_influence(f"H^2 + auto, then {size:g}^2", examples, None, size))
        for size in (1e-2, 1e-1):
            sweep.append(_influence(f"Gauss-Newton + {size:g}", examples, size, size, gauss_newton=True))
        for count in SUBSETS:
            subset = {**examples, "pretrain": count}
            sweep.append(_influence(f"auto, {count} examples in the pretraining Hessian", subset, None, None))
        if not plan.frozen:
            sweep += _with_alphas(both.chain, sweep[1])
        yield (
            plan.name,
            partial(
                validate,
                both.chain,
                both.query,
                fit=paper.fits(plan, both),
                choices=[Largest(plan.count), Drawn(plan.count, seed=settings.seed)],
                estimators=sweep,
                seeds=range(plan.orders),
                together=plan.together,
                out=here.out / "retrained" / f"seed-{settings.seed}",
                progress=progress,
            ),
        )


def _at_minima(settings: Settings, progress: Progress) -> Any:
    seed = settings.seed
    for name, classes in resolve.DATASETS.items():
        first, second = splits(settings, name, classes, seed)
        folder = settings.out / "resolve" / name / f"seed-{seed}"
        chains = solved(first, second, seed, folder, progress)
        for link in LINKS:
            for variant, pull in (("proximal 0.1", 0.1), ("plain", 0.0)):
                # without the pull a group sends the network to another minimum: `resolve` shows that truth by itself
                groups = [Groups(share, resolve.COUNT, seed=seed) for share in resolve.SHARES] if pull else []
                singles = [Largest(resolve.COUNT, by=0.1), Largest(resolve.COUNT), Drawn(resolve.COUNT, seed=seed)]
                base = Lanczos(damping=pull, filter=Shift, rtol=1e-6, max_steps=5000)
                sweep: list[Estimator] = [Influence(Hessian(), base, name="matched")]
                sweep.append(Influence(Hessian(), Lanczos(max_steps=3000), name="auto"))
                for size in SIZES:
                    shift = Lanczos(damping=size, filter=Shift, rtol=1e-5, max_steps=3000)
                    sweep.append(
                        Influence(Hessian(), Lanczos(damping=size**2, max_steps=3000), name=f"H^2 + {size:g}^2")
                    )
                    sweep.append(Influence(Hessian(), shift, name=f"H + {size:g}"))
                    sweep.append(Influence(GaussNewton(), shift, name=f"Gauss-Newton + {size:g}"))
                yield (
                    f"{name}, {link}, {variant}",
                    partial(
                        validate,
                        chains[link].chain,
                        chains[link].query,
                        fit=Resolve(proximity=pull) if pull else Resolve(),
                        choices=[*singles, *groups],
                        estimators=sweep,
                        out=folder / f"{link}-{variant}".replace(" ", "-"),
                        progress=progress,
                    ),
                )


def _as_adam_left_them(settings: Settings, progress: Progress) -> Any:
    seed = settings.seed
    for name, classes in resolve.DATASETS.items():
        first, second = splits(settings, name, classes, seed)
        chains = solved(first, second, seed, settings.out / "resolve" / name / f"seed-{seed}", progress)
        for link in LINKS:
            chain, query = _trained_by_adam(chains[link].chain, seed), chains[link].query
            exact = Lanczos(damping=0.0, rtol=1e-6, max_steps=5000)
            sweep: list[Estimator] = [
                Influence(Hessian(), name="as it is, Hessian^2 + auto"),
                Influence(ALL, name="as it is, the default"),
                Influence(ALL, exact, name="as it is, plain inverse"),
                Influence(GaussNewton(), Lanczos(damping=1e-4), name="as it is, Gauss-Newton^2 + 1e-4"),
                Polished(Influence(Hessian()), "polished, auto"),
                Polished(Influence(ALL, exact), "polished, plain inverse"),
                Polished(Influence(GaussNewton(), Lanczos(damping=1e-4)), "polished, Gauss-Newton^2 + 1e-4"),
            ]
            if link == "updated":
                sweep += _with_alphas(chain, Influence(ALL))
            yield (
                f"{name}, {link}",
                partial(
                    validate,
                    chain,
                    query,
                    fit=ON,
                    choices=[Largest(resolve.COUNT), Drawn(resolve.COUNT, seed=seed), Groups(0.1, seed=seed)],
                    estimators=sweep,
                    seeds=range(3),
                    together=25,
                    out=settings.out / "adam" / name / link,
                    progress=progress,
                ),
            )


def _with_alphas(chain: Chain, inner: Estimator) -> list[Estimator]:
    """The pulls to compare, "auto" by what it estimates; it has no estimate where nothing pulls back."""
    last, found = chain.stages[-1], list[Estimator]()
    for alpha in ALPHAS:
        name = f"alpha {alpha}"
        if alpha == "auto":
            again = replace(last, link=replace(last.link, alpha="auto"))  # pyright: ignore[reportCallIssue,reportArgumentType]
            try:
                name += f" ({Chain(*chain.stages[:-1], again).last.link_settings['alpha']:.2g})"
            except DescriptionError:
                continue
        found.append(WithAlpha(alpha, inner, name))
    return found


def _trained_by_adam(chain: Chain, seed: int) -> Chain:
    """The chain's stages trained from scratch, one after the other."""
    before, stages = None, list[Any]()
    for problem in chain.problems:
        weights = torch.ones(1, len(problem.stage.examples), dtype=torch.float64)
        before = FROM_SCRATCH(problem, weights, before, seed)
        stages.append(with_values(problem.stage, {name: value[0] for name, value in before.items()}))
    return Chain(*stages)


def _influence(
    name: str,
    examples: Mapping[str, int | None],
    first: float | None,
    second: float | None,
    *,
    gauss_newton: bool = False,
) -> Influence:
    """Dampings of H^2 by where they cut off, per stage; None is "auto"; of Gauss-Newton they are added."""
    sizes = dict(zip(paper.STAGES, (first, second), strict=True))
    kind = GaussNewton if gauss_newton else Hessian
    solver = {
        stage: Lanczos(max_steps=2000)
        if size is None
        else Lanczos(damping=size, filter=Shift, max_steps=2000)
        if gauss_newton
        else Lanczos(damping=size**2, max_steps=2000)
        for stage, size in sizes.items()
    }
    return Influence({stage: kind(examples=count) for stage, count in examples.items()}, solver, name=name)


@final
@dataclass(frozen=True)
class Polished:
    """An estimator on the chain with every stage brought to its strict minimum first."""

    inner: Estimator
    name: str

    @property
    def unit(self) -> str | None:
        return self.inner.unit

    def removal_effects(self, chain: Chain, query: Query, stage: str, progress: Progress | None = None) -> Tensor:
        at_minimum = polish(chain, tolerance=1e-8, max_steps=1000, progress=progress).chain
        return self.inner.removal_effects(at_minimum, query, stage, progress)

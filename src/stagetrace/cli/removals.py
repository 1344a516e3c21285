"""What `validate` removes, and what it records of its settings."""

import os
from collections.abc import Mapping, Sequence

from stagetrace.cli import controls, settings
from stagetrace.cli.target import Target
from stagetrace.errors import refuse
from stagetrace.results.jsonable import JSON
from stagetrace.stages.identity.settings import settings_of
from stagetrace.validation import Fit, GroupRemovals, RandomRemovals, Rerun, Resolve, TopRemovals
from stagetrace.validation.fits.fit import described
from stagetrace.validation.removals import RemovalPlan

__all__ = ["check_alone", "check_counts", "recorded_settings", "removals"]

FEWEST = 3
"""Removals from which a correlation, and how far runs agree, can be told."""


def removals(
    largest: int,
    random: int,
    shares: Sequence[float],
    count: int,
    by: Sequence[float],
    fitted: Mapping[str, Fit],
    seed: int,
) -> list[RemovalPlan]:
    """What was typed, or by default whole removals; and tenths of single ones where the truth is exact enough."""
    exact = all(isinstance(fit, Resolve | Rerun) and not fit.is_stochastic for fit in fitted.values())
    parts = list(dict.fromkeys(by)) or ([1.0, 0.1] if exact else [1.0])
    chosen: list[RemovalPlan] = []
    if largest:
        chosen += [TopRemovals(largest, part) for part in parts]
    if random:
        chosen += [RandomRemovals(random, part, seed) for part in parts]
    chosen += [
        GroupRemovals(share, count, seed, part) for share in dict.fromkeys(shares) for part in (by and parts) or [1.0]
    ]
    if not chosen:
        refuse("nothing to remove: type --largest, --random or --groups with something above 0")
    return chosen


def check_counts(counts: Mapping[str, int], examples: int, stage: str) -> None:
    """Refuse before anything is trained what could not be told afterwards."""
    for option, count in counts.items():
        if count and min(count, examples) < FEWEST:
            why = f"stage '{stage}' has {examples} examples" if count > examples else f"got {count}"
            refuse(f"{option}: a correlation needs at least {FEWEST} removals, {why}; 50 is usual, 0 leaves it out")


def recorded_settings(
    job: Target, typed: settings.SolveOptions, fitted: Mapping[str, Fit], chosen: Sequence[RemovalPlan]
) -> dict[str, JSON]:
    """What was chosen, by the command line and by the target."""
    recorded: dict[str, JSON] = {
        "fit": {name: described(fit) for name, fit in fitted.items()},
        "choices": [described(choice) for choice in chosen],
    }
    if not controls.use_default_estimators(typed, job.options):
        return recorded
    curvature = settings.curvatures(job.chain, typed, job.options.get("curvature"))
    solver = settings.solvers(job.chain, typed, job.options.get("solver"), curvature)
    recorded["curvature"] = {name: settings_of(choice) for name, choice in curvature.items()}
    recorded["solver"] = {name: settings_of(choice) for name, choice in solver.items()}
    return recorded


def check_alone() -> None:
    """Refuse to be one of several processes that would all train the same."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        refuse("validate shares its work by itself: start it once, without torchrun, and type --processes N")

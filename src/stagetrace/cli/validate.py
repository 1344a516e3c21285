"""`stagetrace validate`: do the scores predict what retraining does?"""

import os
from collections.abc import Mapping, Sequence

from stagetrace.cli import controls, fits, options, settings, show
from stagetrace.cli.target import Target, load
from stagetrace.errors import refuse
from stagetrace.progress import Bars
from stagetrace.results.jsonable import JSON
from stagetrace.results.lock import refuse_in_use
from stagetrace.stages.identity.settings import settings_of
from stagetrace.terminal import terminal
from stagetrace.validation import Fit, GroupRemovals, RandomRemovals, Rerun, Resolve, TopRemovals
from stagetrace.validation import validate as compare
from stagetrace.validation.fits.fit import described
from stagetrace.validation.removals import RemovalPlan
from stagetrace.validation.report import save

FEWEST = 3
"""Removals from which a correlation, and how far runs agree, can be told."""


def validate(
    target: options.Target,
    out: options.Out,
    stage: options.Stage = None,
    largest: options.Largest = 50,
    random: options.Random = 50,
    by: options.By = [],  # noqa: B006
    groups: options.Groups = [],  # noqa: B006
    group_count: options.GroupCount = 50,
    retrain: options.Retrain = [],  # noqa: B006
    seeds: options.Seeds = 3,
    processes: options.Processes = None,
    together: options.Together = 8,
    solve: options.Solve = [],  # noqa: B006
    embedding: options.Embedding = None,
    text: options.Text = None,
    seed: options.Seed = 0,
    debug: options.Debug = False,
) -> None:
    """Retrain without chosen examples, and compare with what the scores and simpler controls predicted."""
    del debug
    _alone()
    typed = settings.SolveOptions(solve)
    refuse_in_use(out)  # before the target's models are loaded
    job = load(target)
    chain, query = job.chain, job.query
    stage = stage or chain.names[0]
    chain.check_names([stage], "--stage")
    fitted = fits.fits(chain, stage, retrain, job.options.get("fit"))
    chosen = _choices(largest, random, groups, group_count, by, fitted, seed)
    _check_counts({"--largest": largest, "--random": random}, len(chain[stage].stage.examples), stage)
    found, asked = controls.estimators(chain, typed, job.options, embedding, text, seed)
    runs = range(seeds if any(fit.is_stochastic for fit in fitted.values()) else 1)
    progress = Bars()

    def say(line: str) -> None:
        progress.console.print(line, highlight=False, soft_wrap=True)

    described_fits = fits.describe(chain, fitted)
    for name, how in described_fits.items():
        say(f"stage '{name}' is retrained by {how}")
    predicted, left_out = controls.predicted(found, asked, (chain, query, stage), progress, say)
    validation = compare(
        chain,
        query,
        fit=fitted,
        stage=stage,
        choices=chosen,
        estimators=predicted,
        seeds=runs,
        processes=processes,
        together=together,
        out=out,
        progress=progress,
    )
    recorded = {"target": target, "seeds": list(runs), "together": together, **_settings(job, typed, fitted, chosen)}
    files = save(validation, out, settings=recorded, left_out=left_out)
    show.validation(validation, described_fits, left_out, terminal(), files)


def _choices(
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


def _check_counts(counts: Mapping[str, int], examples: int, stage: str) -> None:
    """Refuse before anything is trained what could not be told afterwards."""
    for option, count in counts.items():
        if count and min(count, examples) < FEWEST:
            why = f"stage '{stage}' has {examples} examples" if count > examples else f"got {count}"
            refuse(f"{option}: a correlation needs at least {FEWEST} removals, {why}; 50 is usual, 0 leaves it out")


def _settings(
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
    solver = settings.solvers(job.chain, typed, job.options.get("solver"))
    recorded["curvature"] = {name: settings_of(choice) for name, choice in curvature.items()}
    recorded["solver"] = {name: settings_of(choice) for name, choice in solver.items()}
    return recorded


def _alone() -> None:
    """Refuse to be one of several processes that would all train the same."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        refuse("validate shares its work by itself: start it once, without torchrun, and type --processes N")

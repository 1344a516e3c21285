"""Stages that the library trains itself: each order of the batches is a chain of its own, and scores are their mean.

Not every training is smooth. The derivative of one that is not can be many times that of the others without saying
more about what a training leads to, and a plain mean is then that one's. So none counts for more than the median one:

    mean = sum_o w_o s_o / sum_o w_o,    w_o = min(1, median of |s| / |s_o|),    |s_o| over the examples of a stage,

Huber's (1964) weights of a location with their threshold at the median. They are one number a query: the mean stays
linear in the examples, and where the orders' sizes are equal it is the plain mean.
"""

import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from statistics import fmean

import torch
from torch import Tensor

from stagetrace.errors import StagetraceWarning, refuse
from stagetrace.recording.link import Trains, Unrolled
from stagetrace.results import JSON, Scores, Trace
from stagetrace.solvers.base import Solution
from stagetrace.stages.chain import Chain
from stagetrace.stages.stage import Stage

ROUGH = 3.0
"""How many times the median order's scores another's are, from which it is named."""


def trained_seeds(chain: Chain) -> Sequence[int]:
    """The seeds for which stages of the chain are to be trained; empty where all is recorded or idealised.

    Raises:
        DescriptionError: seeds differ between stages, or a stage after one that is trained is not.
    """
    trains = [isinstance(bound.recording, Trains) for bound in chain]
    if not any(trains):
        return ()
    first = trains.index(True)
    for bound in chain.bound_stages[first + 1 :]:
        if not isinstance(bound.recording, Trains):
            refuse(
                f"{bound.stage.where} comes after '{chain.names[first]}', which is trained again for its scores, so it "
                "must be trained again too: link=Unrolled(shared, Steps(...))"
            )
    links = [bound.stage.link for bound in chain.bound_stages[first:]]
    seeds = {tuple(link.seeds) for link in links if isinstance(link, Unrolled)}
    if len(seeds) > 1:
        refuse(f"Unrolled: the stages' seeds differ ({' and '.join(map(str, sorted(seeds)))}); give all the same")
    return seeds.pop()


def trained(chain: Chain, folder: Path, seed: int) -> Chain:
    """The chain with each stage that is to be trained as one order of its batches leaves it, recorded."""
    stages = list[Stage]()
    for bound in chain:
        if isinstance(bound.recording, Trains):
            previous = stages[-1] if stages else None
            stages.append(bound.recording.record(bound, previous, folder / bound.name, seed))
        else:
            stages.append(bound.stage)
    return Chain(*stages)


def mean_over(
    chain: Chain, seeds: Sequence[int], traced: Callable[[Chain], Trace], description: Mapping[str, JSON]
) -> Trace:
    """The mean of the scores over chains that are trained for each seed; solutions say how far the orders agree.

    Warns of an order whose scores are several times those of the others.
    """
    results = list[Trace]()
    for seed in seeds:
        with tempfile.TemporaryDirectory() as folder:
            results.append(traced(trained(chain, Path(folder), seed)))
    first = results[0]
    scores = {name: mean_scores([each[name] for each in results], seeds) for name in first}
    solutions = {
        name: _said(solution, [each.solutions[name] for each in results], seeds, _agreement(results, name))
        for name, solution in first.solutions.items()
    }
    return Trace(scores, solutions, description, first.statistics)


def order_weights(values: Tensor) -> Tensor:
    """The share of each order in the mean, `[orders, 1]` or `[orders, n_queries, 1]`; over the orders they sum to 1.

    values: the scores of each order, `[orders, n_examples]` or `[orders, n_queries, n_examples]`.
    """
    sizes = torch.linalg.vector_norm(values.double(), dim=-1, keepdim=True)
    weights = (sizes.median(dim=0).values / sizes).nan_to_num(1.0).clamp(max=1.0)  # of an even number the lower median
    return weights / weights.sum(dim=0)


def mean_scores(each: Sequence[Scores], seeds: Sequence[int]) -> Scores:
    """The mean of one stage's scores over orders, weighed by `order_weights`; warns of an order that is rough."""
    weights = order_weights(torch.stack([scores.values for scores in each]))
    _warn_of_rough(each, seeds)

    def over(name: str) -> Tensor | None:
        found = [getattr(scores, name) for scores in each]
        return None if found[0] is None else (weights * torch.stack(found)).sum(dim=0)

    values = over("values")
    assert values is not None
    return replace(each[0], values=values, via_shared=over("via_shared"), via_head=over("via_head"))


def _warn_of_rough(each: Sequence[Scores], seeds: Sequence[int]) -> None:
    sizes = torch.stack([torch.linalg.vector_norm(scores.values) for scores in each])
    median = sizes.median()
    rough = [(seed, float(size / median)) for seed, size in zip(seeds, sizes, strict=True) if size > ROUGH * median]
    if rough and float(median):
        some = ", ".join(f"{times:.3g} times with seed {seed}" for seed, times in rough)
        warnings.warn(
            f"stage '{each[0].stage}': scores are many times those of the median order of the batches ({some}): "
            "training is not smooth there, and such an order counts for no more than the median one; "
            "train at a smaller rate, or give more seeds",
            StagetraceWarning,
            stacklevel=5,
        )


def _agreement(results: Sequence[Trace], name: str) -> float | None:
    """The mean correlation between the scores of two orders; None where there is one order, or no score."""
    if len(results) < 2 or name not in results[0]:
        return None
    pairs = combinations([each[name].values.flatten() for each in results], 2)
    return fmean(float(torch.corrcoef(torch.stack(pair))[0, 1]) for pair in pairs)


def _said(solution: Solution, each: Sequence[Solution], seeds: Sequence[int], agreement: float | None) -> Solution:
    orders = f"mean over {len(seeds)} orders of the batches" if len(seeds) > 1 else "one order of the batches"
    agree = "" if agreement is None else f", whose scores correlate at r {agreement:.2f}"
    worst = tuple(max(found) for found in zip(*(one.relative_residuals for one in each), strict=True))
    return replace(
        solution, relative_residuals=worst, notes=(f"trained by the library, {orders}{agree}", *solution.notes)
    )

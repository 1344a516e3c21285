"""A method's figures: its predictions beside the truths."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from benchmarks.two_stage.predictions import Predictions, Truths
from benchmarks.two_stage.protocol import MEAN, OTHER, RECORDED
from benchmarks.two_stage.truths import Truth
from experiments.records import over_seeds
from stagetrace.validation import Reliability
from stagetrace.validation.agreement import pearson, ranks

Row = dict[str, Any]
KINDS = (RECORDED, OTHER)


def figures(predicted: Predictions, truths: Truths) -> list[Row]:
    """One row for each chain, truth and size of the subsets: mean over seeds with interval of

    r, slope: Pearson's correlation over the subsets, and the slope through the origin (true over predicted), of the
        mean query. The slope is None where the predictions have no unit.
    lds: the linear datamodelling score: Spearman's correlation over the subsets, the mean over all queries that are
        answered; `queries` says how many.
    """
    rows = list[Row]()
    for chain in dict.fromkeys(chain for chain, _, _ in predicted.changes):
        seeds = [truth for (name, _), truth in sorted(truths.items()) if name == chain]
        for kind in KINDS:
            for percent in sizes(seeds, kind):
                each = [_of_seed(predicted, truth, kind, percent) for truth in seeds]
                measured = {name: over_seeds([one[name] for one in each]) for name in ("r", "slope", "lds")}
                rows.append(
                    {
                        "method": predicted.method,
                        "chain": chain,
                        "truth": kind,
                        "percent": percent,
                        "queries": each[0]["queries"],
                        **measured,
                        "seconds": predicted.seconds.get(chain),
                    }
                )
    return rows


def sizes(seeds: Sequence[Truth], kind: str) -> list[int]:
    """The sizes of subsets that a truth has for every seed, at least three of each."""
    every = sorted(set(seeds[0].percents.tolist()))
    return [percent for percent in every if all(len(truth.of(kind, percent)[0]) > 2 for truth in seeds)]


def _of_seed(predicted: Predictions, truth: Truth, kind: str, percent: int) -> dict[str, float | None]:
    places, true = truth.of(kind, percent)
    answered = [place for place, query in enumerate(truth.queries) if (*truth.key, query) in predicted.changes]
    said = torch.stack([predicted.changes[*truth.key, truth.queries[place]] for place in answered])[:, places]
    mean = answered.index(truth.queries.index(MEAN))
    p, t = said[mean], true[truth.queries.index(MEAN)]
    slope = float((p * t).sum() / (p * p).sum()) if predicted.unit == "nats" and bool(p.any()) else None
    return {
        "r": correlation(p, t),
        "slope": slope,
        "lds": sum(correlation(ranks(p), ranks(t)) for p, t in zip(said, true[answered], strict=True)) / len(answered),
        "queries": len(answered),
    }


def correlation(p: Tensor, t: Tensor) -> float:
    """Pearson's r; 0 where a side does not vary: predictions that are all equal say nothing."""
    found = float(pearson(p, t))
    return 0.0 if math.isnan(found) else found


def reliabilities(truths: Truths) -> list[Row]:
    """How far the truths of other orders agree, by chain and size, of the mean query; mean over seeds with interval.

    reliability: of the mean over the orders; ceiling: its root, the r that a perfect prediction of what orders have in
    common reaches. with the recorded order: the correlation of the other orders' mean with the recorded truth.
    """
    rows = list[Row]()
    for chain in dict.fromkeys(chain for chain, _ in truths):
        seeds = [truth for (name, _), truth in sorted(truths.items()) if name == chain]
        for percent in sizes(seeds, OTHER):
            each = [_agreement(truth, percent) for truth in seeds]
            said = {name: over_seeds([one[name] for one in each]) for name in each[0]}
            rows.append({"chain": chain, "percent": percent, **said})
    return rows


def _agreement(truth: Truth, percent: int) -> Mapping[str, float]:
    mean = truth.queries.index(MEAN)
    places, true = truth.of(OTHER, percent)
    among = [truth.repeated.index(place) for place in places]
    found = Reliability.of(truth.order_changes[:, mean, among])
    return {
        "reliability": found.reliability,
        "ceiling": found.ceiling,
        "with the recorded order": correlation(truth.changes[mean, places], true[mean]),
    }

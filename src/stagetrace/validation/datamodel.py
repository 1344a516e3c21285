"""Whole groups of examples removed: do added-up scores order the groups as retraining does?"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from operator import index
from typing import final

import torch
from torch import Tensor

from stagetrace.errors import refuse
from stagetrace.results.jsonable import to_json
from stagetrace.stages.stage import check_count
from stagetrace.validation.agreement import Interval, bootstrap, finite, pearson, percentiles, ranks


@final
@dataclass(frozen=True)
class LinearDatamodelling:
    """The linear datamodelling score: Spearman's correlation over groups between predicted and true change.

    lds: the mean over the queries.
    interval: the 2.5 % and 97.5 % points of that mean over bootstrap samples of the groups, the same for all queries;
        too narrow for few groups, as in `Agreement`. NaN for two groups.
    per_query: one for each query.

    A query whose predictions or truths are all equal has no rank correlation: its own figure and `lds` are NaN.
    Bootstrap samples where a query has none are left out of the interval.

    Source: Park et al. (2023), TRAK: Attributing Model Behavior at Scale, section 2; Ilyas et al. (2022),
    Datamodels. They sum the scores of the examples that stay and compare with the model's output; the scores of those
    that go, with the sign of the change, order the groups alike, since both sums add up to that of all examples.

    Example:
        >>> import torch
        >>> print(LinearDatamodelling.of(torch.tensor([0.1, 0.2, 0.3, 0.4]), torch.tensor([0.0, 0.3, 0.2, 0.9])))
        LDS 0.8000 (95 %: -1.0000 to 1.0000; 4 groups, 1 query)
    """

    lds: float
    interval: Interval
    per_query: tuple[float, ...]
    groups: int

    @property
    def queries(self) -> int:
        return len(self.per_query)

    def __str__(self) -> str:
        low, high = self.interval
        queries = "1 query" if self.queries == 1 else f"{self.queries} queries"
        return f"LDS {self.lds:.4f} (95 %: {low:.4f} to {high:.4f}; {self.groups} groups, {queries})"

    def record(self) -> dict[str, object]:
        """lds, interval, groups and queries, as JSON holds them: the interval is a list of two, NaN is None."""
        return {**to_json(self, omit={"per_query"}), "queries": self.queries}

    @staticmethod
    def of(predicted: Tensor, true: Tensor, *, resamples: int = 2000, seed: int = 0) -> "LinearDatamodelling":
        """Compare the changes of the query loss when each group is removed: both with the sign of `removal_effect`.

        Args:
            predicted: `[groups]` or `[queries, groups]`; from scores by `group_effects`.
            true: of the same shape, measured by training without each group.
            resamples: bootstrap samples of the groups.
            seed: of their own generator; torch's global one is not touched.

        Raises:
            DescriptionError: they differ in shape, have no query or less than 2 groups, a value is not finite, or
                `resamples` is not a whole number of at least 1.
        """
        where = "LinearDatamodelling.of"
        check_count(resamples, f"{where}: resamples")
        shape = predicted.shape
        if len(shape) not in (1, 2) or shape != true.shape or shape[-1] < 2 or not predicted.numel():
            refuse(
                f"{where} needs predicted and true of one shape, [groups] or [queries, groups] with at least 2 groups, "
                f"got {list(shape)} and {list(true.shape)}"
            )
        p = torch.atleast_2d(finite(f"{where}: predicted", predicted))
        t = torch.atleast_2d(finite(f"{where}: true", true))
        queries, groups = p.shape
        interval = (math.nan, math.nan)
        if groups > 2:
            samples = bootstrap(
                lambda drawn: _spearman(p[:, drawn], t[:, drawn]).mean(dim=0), groups, resamples, seed, width=queries
            )
            interval = percentiles(samples)
        per_query = _spearman(p, t)
        return LinearDatamodelling(float(per_query.mean()), interval, tuple(per_query.tolist()), groups)


def _spearman(left: Tensor, right: Tensor) -> Tensor:
    return pearson(ranks(left), ranks(right))


def group_effects(removal_effect: Tensor, groups: Sequence[Sequence[int]]) -> Tensor:
    """The predicted change of the query loss if each group were removed: the sum of its members' removal effects.

    A sum is what a linear prediction says: members act on the loss without each other. Sign and unit stay those of
    `removal_effect`: negative = removing the group helps.

    Args:
        removal_effect: `[n]` or `[queries, n]`, such as `scores.removal_effect`.
        groups: indices from 0 to n - 1; groups may differ in size and share examples.

    Returns:
        `[groups]` or `[queries, groups]`, float64 on the CPU.

    Raises:
        DescriptionError: effects of another shape or not finite; no group, or one that is empty, names an example
            twice, or names one that does not exist.

    Example:
        >>> group_effects(torch.tensor([0.5, -1.0, 2.0]), [[0, 1], [2]]).tolist()
        [-0.5, 2.0]
    """
    if removal_effect.ndim not in (1, 2):
        refuse(f"group_effects needs removal effects [n] or [queries, n], got {list(removal_effect.shape)}")
    effects = finite("group_effects: removal_effect", removal_effect)
    members = [_checked(group, place, effects.shape[-1]) for place, group in enumerate(groups)]
    if not members:
        refuse("group_effects: no group; type a list of lists of indices such as [[0, 1], [2]]")
    owner = torch.tensor([place for place, group in enumerate(members) for _ in group])
    flat = torch.tensor([member for group in members for member in group])
    sums = effects.new_zeros(*effects.shape[:-1], len(members))
    return sums.index_add(-1, owner, effects[..., flat])


def _checked(group: Sequence[int], place: int, n: int) -> list[int]:
    where = f"group_effects: group {place}"
    try:
        members = [index(member) for member in group]
    except TypeError:
        refuse(f"{where} must hold whole numbers, got {group!r}")
    if not members:
        refuse(f"{where} is empty; leave it out")
    wrong = [member for member in members if not 0 <= member < n]
    if wrong:
        refuse(f"{where}: example {wrong[0]} does not exist; type 0 to {n - 1}")
    if len(set(members)) < len(members):
        refuse(f"{where} names an example twice; it can be removed only once")
    return members

"""Does a stage's data, taken as a whole, help the query? The mean score, and how sure one can be of its sign."""

import math
from dataclasses import dataclass
from typing import Literal, final

import torch
from torch import Tensor

_NORMAL = 1.959964
"""The 97.5 % quantile of the normal distribution: 95 % lie within."""

Verdict = Literal["helps", "harms", "cannot be told"]


@final
@dataclass(frozen=True)
class Transfer:
    """The derivative of the query loss in the weight of all the stage's examples at once, to first order.

    With the objective `(1 + epsilon) * mean loss + penalty`, d(query loss)/d(epsilon) is the sum of `score_i / n`: the
    mean score. Positive: more weight on the data as a whole raises the query loss, it harms. Unit: query loss.

    At a minimum without a penalty and without a pull to an earlier stage it is zero, whatever the data: weighting all
    examples alike does not move such a minimum. Then the verdict is "cannot be told", rightly.

    low, high: 95 % by the normal distribution from the spread over examples, the trained weights held fixed: what
        another draw of examples could give for the same model, not what another training could.

    Example:
        >>> Transfer.of(torch.tensor([-1.0, -1.1, -0.9]).double()).verdict
        'helps'
        >>> Transfer.of(torch.tensor([-1.0, 1.0]).double()).verdict
        'cannot be told'
    """

    mean: float
    low: float
    high: float

    @staticmethod
    def of(scores: Tensor) -> "Transfer":
        """The transfer of a stage from its scores `[n_examples]`; one example alone has no interval."""
        mean = float(scores.mean())
        if len(scores) < 2:
            return Transfer(mean, -math.inf, math.inf)
        error = _NORMAL * float(scores.std()) / math.sqrt(len(scores))
        return Transfer(mean, mean - error, mean + error)

    @property
    def verdict(self) -> Verdict:
        if self.low > 0:
            return "harms"
        return "helps" if self.high < 0 else "cannot be told"


def concentration(scores: Tensor, share: float = 0.01) -> float:
    """The part of the sum of |score| that the largest `share` of the examples (one at least) makes up, from 0 to 1.

    Example:
        >>> concentration(torch.tensor([3.0, -1.0, 0.0, 0.0]).double())
        0.75
    """
    sizes = scores.abs().sort(descending=True).values
    total = float(sizes.sum())
    return float(sizes[: max(1, math.ceil(share * len(sizes)))].sum()) / total if total else 0.0


def percentiles(scores: Tensor, places: Tensor) -> Tensor:
    """The percentage of the stage's examples with a smaller score than each of those at `places`; ties count half.

    Example:
        >>> percentiles(torch.tensor([1.0, 2.0, 2.0, 5.0]), torch.tensor([0, 1, 3]))
        tensor([12.5000, 50.0000, 87.5000], dtype=torch.float64)
    """
    ordered = scores.sort().values
    chosen = scores[places]
    below, upto = (torch.searchsorted(ordered, chosen, right=right).double() for right in (False, True))
    return 50 * (below + upto) / len(scores)

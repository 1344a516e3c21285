"""How well predictions and truth agree, and how far n pairs can tell."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from stagetrace.errors import refuse
from stagetrace.results.jsonable import to_json
from stagetrace.stages.stage import check_count

Interval = tuple[float, float]
"""Low and high end; (NaN, NaN) where it is unknown."""

BLOCK = 2**20
"""Resampled numbers held at once."""


@final
@dataclass(frozen=True)
class Agreement:
    """n pairs: Pearson's r, Spearman's rank correlation (ties share their mean rank), and the slope.

    slope: of truth on prediction, by least squares through the origin: `sum(p t) / sum(p^2)`. 1 is ideal, above 1 the
        predictions are too small.
    pearson_interval, spearman_interval, slope_interval: the 2.5 % and 97.5 % points of the figure over bootstrap
        samples of the pairs. They say what another draw of pairs could give, not what another training run could (for
        that see `Reliability`). Too narrow for few pairs: of normal pairs, the interval of r holds the true r in about
        90 % of draws of 10, 91 % of 20, 93 % of 40.
    without_largest: Pearson's r without the pair of largest |predicted|: one outlier alone can make r = 0.99.

    A correlation is NaN where a side does not vary, the slope where every prediction is 0. Bootstrap samples with a NaN
    are left out of its interval. Two pairs have NaN for intervals and `without_largest`.

    Source: Efron & Tibshirani (1993), An Introduction to the Bootstrap, chapter 13.

    Example:
        >>> import torch
        >>> agreement = Agreement.of(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([2.0, 4.0, 6.0]))
        >>> print(agreement)
        r = 1.0000 (95 %: 1.0000 to 1.0000), Spearman 1.0000, slope 2.0000 (n = 3)
    """

    n: int
    pearson_r: float
    pearson_interval: Interval
    spearman_r: float
    spearman_interval: Interval
    slope: float
    slope_interval: Interval
    without_largest: float

    def __str__(self) -> str:
        low, high = self.pearson_interval
        return (
            f"r = {self.pearson_r:.4f} (95 %: {low:.4f} to {high:.4f}), Spearman {self.spearman_r:.4f}, "
            f"slope {self.slope:.4f} (n = {self.n})"
        )

    def record(self) -> dict[str, object]:
        """The fields by name, as JSON holds them: an interval is a list of two, NaN is None."""
        return to_json(self)

    @staticmethod
    def of(predicted: Tensor, true: Tensor, *, resamples: int = 2000, seed: int = 0) -> "Agreement":
        """Compare two vectors of the same unit and sign, such as predicted and measured removal effects.

        Args:
            predicted: `[n]`.
            true: `[n]`, in the same order.
            resamples: bootstrap samples of the pairs.
            seed: of their own generator; torch's global one is not touched.

        Raises:
            DescriptionError: they are not vectors of one length of at least 2, a value is not finite, or `resamples`
                is not a whole number of at least 1.
        """
        check_count(resamples, "Agreement.of: resamples")
        if predicted.ndim != 1 or predicted.shape != true.shape or len(predicted) < 2:
            refuse(
                "Agreement.of needs two vectors of one length of at least 2, "
                f"got {list(predicted.shape)} and {list(true.shape)}"
            )
        p, t = finite("Agreement.of: predicted", predicted), finite("Agreement.of: true", true)
        if len(p) > 2:
            samples = bootstrap(lambda drawn: _figures(p[drawn], t[drawn]), len(p), resamples, seed)
            intervals = [percentiles(column) for column in samples.unbind(dim=1)]
        else:
            intervals = [(math.nan, math.nan)] * 3
        others = torch.arange(len(p)) != p.abs().argmax()
        r, rank_r, slope = _figures(p, t).tolist()
        rest = float(pearson(p[others], t[others]))
        return Agreement(len(p), r, intervals[0], rank_r, intervals[1], slope, intervals[2], rest)


def _figures(p: Tensor, t: Tensor) -> Tensor:
    """Pearson's r, Spearman's, and the slope: `[..., n]` twice -> `[..., 3]`."""
    slope = (p * t).sum(dim=-1) / (p * p).sum(dim=-1)
    return torch.stack([pearson(p, t), pearson(ranks(p), ranks(t)), slope], dim=-1)


def pearson(left: Tensor, right: Tensor) -> Tensor:
    """Pearson's r over the last dimension: `[..., n]` twice -> `[...]`; NaN where a side does not vary."""
    a, b = (side - side.mean(dim=-1, keepdim=True) for side in (left, right))
    r = (a * b).sum(dim=-1) / (a.norm(dim=-1) * b.norm(dim=-1))
    # Asked of the values: equal ones may differ from their mean by a rounding error.
    varies = (left.amax(dim=-1) > left.amin(dim=-1)) & (right.amax(dim=-1) > right.amin(dim=-1))
    return r.clamp(-1, 1).where(varies, math.nan)


def ranks(values: Tensor) -> Tensor:
    """Ranks from 1 over the last dimension; equal values share the mean of theirs."""
    values = values.contiguous()
    ordered = values.sort(dim=-1).values
    below = torch.searchsorted(ordered, values)
    below_or_equal = torch.searchsorted(ordered, values, right=True)
    return (below + below_or_equal + 1).double() / 2


def bootstrap(figures: Callable[[Tensor], Tensor], count: int, resamples: int, seed: int, width: int = 1) -> Tensor:
    """`figures` of `resamples` draws with replacement out of `count` things; it maps indices `[some, count]` to `[some,
    ...]`, and needs about `width` numbers for each index.
    """
    generator = torch.Generator().manual_seed(seed)
    some = max(1, BLOCK // (count * width))
    blocks = [min(some, resamples - first) for first in range(0, resamples, some)]
    return torch.cat([figures(torch.randint(count, (block, count), generator=generator)) for block in blocks])


def percentiles(samples: Tensor) -> Interval:
    """The 2.5 % and 97.5 % points of a vector without its NaNs."""
    samples = samples[~samples.isnan()]
    if not len(samples):
        return math.nan, math.nan
    low, high = samples.quantile(torch.tensor([0.025, 0.975], dtype=samples.dtype)).tolist()
    return low, high


def finite(what: str, values: Tensor) -> Tensor:
    """The values in float64 on the CPU.

    Raises:
        DescriptionError: one is NaN or infinite; the message says which.
    """
    values = values.detach().cpu().double()
    wrong = (~values.isfinite()).nonzero()
    if len(wrong):
        place = wrong[0].tolist()
        refuse(
            f"{what} holds {float(values[tuple(place)])} at {place}, and {len(wrong)} of {values.numel()} values are "
            "not finite; find out why, or leave them out on both sides"
        )
    return values

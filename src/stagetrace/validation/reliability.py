"""How far a measured truth can be trusted: its reliability over training runs, and means over seeds."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import final

import torch
from torch import Tensor

from stagetrace.errors import refuse
from stagetrace.results.jsonable import to_json
from stagetrace.validation.agreement import finite, pearson, ranks

SPLITS = 100
"""Splits into halves that are looked at; all of them where there are no more."""


@final
@dataclass(frozen=True)
class Reliability:
    """n removals, each measured in several runs (batch orders, seeds): how much of the measurement is not noise.

    The reliability of a measurement is the share of its variance over removals that another measurement of the same
    kind would repeat: with `effect = signal + noise`, `var(signal) / (var(signal) + var(noise) / runs)` for the mean
    over the runs.

    split_half: Pearson's r between the mean effects of two halves of the runs, averaged over the splits. A half is
        `runs // 2` runs; of an odd number each split leaves one run out.
    reliability: of the mean over all runs, by the Spearman-Brown formula `k r / (1 + (k - 1) r)` for k times as many
        runs, here from r = split_half with `k = runs / (runs // 2)`.
    single: of one run, by the same formula with `k = 1 / (runs // 2)`.
    rank_reliability: as `reliability`, from Spearman's correlations of the halves. For ranks the formula is
        approximate, but with heavy tails one large effect alone makes `reliability` near 1: trust neither where they
        disagree.
    noise_floor: the standard error of a removal's mean effect, root mean square over the removals; unit: query loss. It
        holds what a run adds to all its effects alike (all share one control), which no correlation sees.

    One run tells nothing of its noise: all of these are NaN then. So are correlations where the mean effects of a half
    do not vary. A `split_half` of 0 or below is no sign of any signal: it stays as it is, its reliabilities are 0.
    These are estimates over n removals; few removals tell little. All removals should be chosen before any is measured.

    Source: Spearman (1910), Correlation calculated from faulty data, and Brown (1910), Some experimental results in the
    correlation of mental abilities, both British Journal of Psychology 3. The ceiling: Spearman (1904), The proof and
    measurement of association between two things, American Journal of Psychology 15.

    Example:
        >>> import torch
        >>> print(Reliability.of(torch.tensor([[1.0, 2.0, 3.0, 5.0], [1.0, 3.0, 2.0, 5.0]])))
        reliability 0.94 of the mean of 2 runs, by ranks 0.89, of one run 0.89; a predictor's r can reach 0.97;
        noise floor 3.5e-01 (n = 4)
    """

    runs: int
    n: int
    split_half: float
    reliability: float
    rank_reliability: float
    single: float
    noise_floor: float

    @property
    def ceiling(self) -> float:
        """`sqrt(reliability)`: the Pearson's r with the mean effects that a perfect prediction of the signal has.

        No predictor that knows nothing of these runs' noise does better, up to the chance of n removals.
        """
        return math.sqrt(self.reliability)

    def runs_needed(self, target: float = 0.9) -> int | None:
        """The number of runs whose mean has this reliability: `t (1 - s) / (s (1 - t))` with s = `single`, rounded up.

        None where no number is known to do: `single` is 0 or NaN.

        Raises:
            DescriptionError: `target` is not between 0 and 1.
        """
        if not 0 < target < 1:
            refuse(f"Reliability.runs_needed: target must be between 0 and 1, got {target!r}; type 0.9")
        if not self.single > 0:
            return None
        needed = target * (1 - self.single) / (self.single * (1 - target))
        return max(1, math.ceil(needed - 1e-9))  # 3.0000000000000004 is 3

    def __str__(self) -> str:
        if self.runs == 1:
            return f"reliability unknown: one run; measure the effects in more (n = {self.n})"
        return (
            f"reliability {self.reliability:.2f} of the mean of {self.runs} runs, by ranks "
            f"{self.rank_reliability:.2f}, of one run {self.single:.2f}; a predictor's r can reach {self.ceiling:.2f}; "
            f"noise floor {self.noise_floor:.1e} (n = {self.n})"
        )

    def record(self) -> dict[str, object]:
        """The fields, `ceiling` and `runs_needed` by name, as JSON holds them: NaN is None."""
        return {**to_json(self), "ceiling": to_json(self.ceiling), "runs_needed": self.runs_needed()}

    @staticmethod
    def of(effects: Tensor, *, seed: int = 0) -> "Reliability":
        """From measured removal effects, each against the control of its own run.

        Args:
            effects: `[runs, n]`; n removals, the same in every run. Unit: query loss.
            seed: of the splits into halves, where there are more than 100 (from 9 runs on).

        Raises:
            DescriptionError: not a matrix of at least 1 run and 3 removals, or a value is not finite.
        """
        if effects.ndim != 2 or effects.shape[0] < 1 or effects.shape[1] < 3:
            refuse(f"Reliability.of needs effects [runs, n] with n of at least 3, got {list(effects.shape)}")
        x = finite("Reliability.of: effects", effects)
        runs, n = x.shape
        if runs == 1:
            return Reliability(runs, n, math.nan, math.nan, math.nan, math.nan, math.nan)
        half = runs // 2
        left, right = (x[members].mean(dim=1) for members in _splits(runs, seed).split(half, dim=1))
        r, rank_r = float(pearson(left, right).mean()), float(pearson(ranks(left), ranks(right)).mean())
        floor = math.sqrt(float(x.var(dim=0).mean()) / runs)
        whole, rank_whole = _stepped(r, runs / half), _stepped(rank_r, runs / half)
        return Reliability(runs, n, r, whole, rank_whole, _stepped(r, 1 / half), floor)


def _stepped(r: float, times: float) -> float:
    """Spearman and Brown: the reliability of `times` as many runs; 0 where r is not above 0."""
    return r if math.isnan(r) else times * max(r, 0.0) / (1 + (times - 1) * max(r, 0.0))


def _splits(runs: int, seed: int) -> Tensor:
    """Two disjoint halves of the runs, side by side: `[splits, 2 (runs // 2)]`."""
    half = runs // 2
    if math.comb(runs, half) * math.comb(runs - half, half) // 2 > SPLITS:
        return torch.rand(SPLITS, runs, generator=torch.Generator().manual_seed(seed)).argsort(dim=1)[:, : 2 * half]
    pairs = (
        (*left, *right)
        for left in combinations(range(runs), half)
        for right in combinations(sorted(set(range(runs)) - set(left)), half)
        if left < right  # each split once
    )
    return torch.tensor(list(pairs))


@final
@dataclass(frozen=True)
class MeanInterval:
    """A mean over n seeds, and its 95 % interval by Student's t; low and high are NaN for one seed.

    The interval is symmetric, so that of a correlation may reach beyond 1.
    """

    mean: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        return f"{self.mean:.4f} (95 %: {self.low:.4f} to {self.high:.4f}, n = {self.n})"

    def record(self) -> dict[str, object]:
        """The fields by name, as JSON holds them: NaN is None."""
        return to_json(self)


def mean_over_seeds(values: Sequence[float] | Tensor) -> MeanInterval:
    """`mean +- t s / sqrt(n)`: s is the standard deviation (n - 1), t the 97.5 % point of Student's t.

    Args:
        values: `[n]`, one figure of each seed, independent of each other.

    Raises:
        DescriptionError: no value, not a vector, or a value is not finite.

    Example:
        >>> print(mean_over_seeds([0.91, 0.95, 0.93]))
        0.9300 (95 %: 0.8803 to 0.9797, n = 3)
    """
    x = finite("mean_over_seeds: values", torch.as_tensor(values, dtype=torch.float64))
    if x.ndim != 1 or not len(x):
        refuse(f"mean_over_seeds needs a vector with a value for each seed, got the shape {list(x.shape)}")
    n, mean = len(x), float(x.mean())
    if n == 1:
        return MeanInterval(mean, math.nan, math.nan, n)
    reach = student_t(n - 1) * float(x.std()) / math.sqrt(n)
    return MeanInterval(mean, mean - reach, mean + reach, n)


def student_t(freedom: int, level: float = 0.95) -> float:
    """The t with `P(|T| <= t) = level`, by bisection of that probability's finite sum in the angle `atan(t / sqrt(v))`.

    Source: Abramowitz & Stegun (1964), 26.7.3 and 26.7.4.
    """
    low, high = 0.0, math.pi / 2
    for _ in range(60):
        angle = (low + high) / 2
        low, high = (angle, high) if _within(angle, freedom) < level else (low, angle)
    return math.sqrt(freedom) * math.tan(low)


def _within(angle: float, freedom: int) -> float:
    odd, cosine = freedom % 2, math.cos(angle)
    term, total = (cosine if odd else 1.0), 0.0
    for power in range(odd, freedom - 1, 2):
        total += term
        term *= cosine * cosine * (power + 1) / (power + 2)
    return 2 / math.pi * (angle + math.sin(angle) * total) if odd else math.sin(angle) * total

"""What some runs with seeds of their own say together: a mean and how far it can be trusted."""

import math
from collections.abc import Sequence
from typing import Any

from scipy import stats


def over_seeds(values: Sequence[float]) -> dict[str, Any]:
    """The values, their mean, and its 95 % interval by Student's t; the ends are None for a single value.

    Example:
        >>> over_seeds([1.0, 2.0, 3.0])["mean"]
        2.0
    """
    n = len(values)
    mean = sum(values) / n
    if n < 2:
        return {"n": n, "mean": mean, "low": None, "high": None, "each": list(values)}
    error = math.sqrt(sum((value - mean) ** 2 for value in values) / (n - 1) / n)
    half = float(stats.t.ppf(0.975, n - 1)) * error
    return {"n": n, "mean": mean, "low": mean - half, "high": mean + half, "each": list(values)}


def ratio_over_seeds(above: Sequence[float], below: Sequence[float]) -> dict[str, Any]:
    """The ratio of two positive figures, seed by seed: geometric mean and the 95 % t-interval of its logarithm."""
    logs = over_seeds([math.log(a / b) for a, b in zip(above, below, strict=True)])
    ends = {name: None if logs[name] is None else math.exp(logs[name]) for name in ("mean", "low", "high")}
    return {"n": logs["n"], **ends, "each": [a / b for a, b in zip(above, below, strict=True)]}


def in_words(found: dict[str, Any], form: str = "+.2f") -> str:
    """`mean (95 %: low to high)`.

    Example:
        >>> in_words(over_seeds([1.0, 1.0]))
        '+1.00 (95 %: +1.00 to +1.00)'
    """
    if found["low"] is None:
        return f"{found['mean']:{form}} (one seed)"
    return f"{found['mean']:{form}} (95 %: {found['low']:{form}} to {found['high']:{form}})"

"""What some runs with seeds of their own say together: a mean and how far it can be trusted."""

import math
from collections.abc import Sequence
from typing import Any

from stagetrace.validation import mean_over_seeds


def over_seeds(values: Sequence[float]) -> dict[str, Any]:
    """The values, their mean, and its 95 % interval by Student's t; the ends are None for a single value.

    Example:
        >>> over_seeds([1.0, 2.0, 3.0])["mean"]
        2.0
    """
    found = mean_over_seeds(values)
    low, high = (None, None) if found.n < 2 else (found.low, found.high)
    return {"n": found.n, "mean": found.mean, "low": low, "high": high, "each": list(values)}


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

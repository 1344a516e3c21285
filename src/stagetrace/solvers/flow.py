"""Gradient descent that was stopped early, as a function of the curvature.

Where descent along `dtheta/ds = b - H theta` goes on for ever it ends at `H^-1 b`. Stopped at a time t it is at

    phi_t(H) b,    phi_t(h) = (1 - exp(-t h)) / h,    phi_t(0) = t,

which is `1 / h` where `t h` is large, and `t`, no more than the gradient, where it is small.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite
from typing import final

import numpy as np

from stagetrace.errors import refuse


@final
@dataclass(frozen=True)
class Flow:
    """`phi_t`, in a filter's place: what descent that was stopped at the time t makes of a gradient.

    time: t. scaled: whether each entry had a rate of its own, `1 / D`; the function is then applied to
    `D^-1/2 H D^-1/2`. decayed: whether each step also shrank the parameters themselves.

    Example:
        >>> Flow(0.5, scaled=True).text("G")
        'x = D^-1/2 phi_t(D^-1/2 G D^-1/2) D^-1/2 b, t = 0.5'
        >>> Flow(2.0)(np.array([0.0, 1e3])).tolist()
        [2.0, 0.001]
    """

    time: float
    scaled: bool = False
    decayed: bool = False

    def __post_init__(self) -> None:
        if not (isinstance(self.time, int | float) and isfinite(self.time) and self.time > 0):
            refuse(
                f"EarlyStopping(time=...) must be finite and above 0, got {self.time!r}; it is the sum of the "
                "learning rates of all steps, such as EarlyStopping(300 * 1e-4)"
            )

    def text(self, matrix: str) -> str:
        """The answer in words, for a curvature called `matrix`."""
        inner = f"D^-1/2 {matrix} D^-1/2" if self.scaled else matrix
        inner += " + decay" if self.decayed else ""
        applied = f"phi_t({inner})"
        return f"x = {f'D^-1/2 {applied} D^-1/2' if self.scaled else applied} b, t = {self.time:g}"

    def record(self) -> dict[str, str | float]:
        """The value as JSON holds it."""
        return {"filter": "Flow", "time": float(self.time), "scaled": self.scaled, "decayed": self.decayed}

    @staticmethod
    def of(record: Mapping[str, object]) -> "Flow":
        """What `record` wrote.

        Raises:
            LookupError, ValueError, DescriptionError: it is something else.
        """
        time = record["time"]
        if record["filter"] != "Flow" or not isinstance(time, int | float):
            raise ValueError(f"it applies {record!r}, which is no function of a curvature")
        return Flow(float(time), bool(record["scaled"]), bool(record["decayed"]))

    def __call__(self, eigenvalues: np.ndarray) -> np.ndarray:
        """`phi_t(h)` for each eigenvalue, `(1 - exp(-t h)) / h`."""
        reached = -np.expm1(-self.time * eigenvalues)
        return np.divide(reached, eigenvalues, out=np.full_like(reached, self.time), where=reached != 0)

    def left(self, eigenvalues: np.ndarray) -> np.ndarray:
        """`exp(-t h)` for each eigenvalue: how much of the way is left."""
        return np.exp(-self.time * eigenvalues)

"""How far two right evaluations of the same losses may be apart."""

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

UNITS = 64
"""Rounding errors, in units of the largest output, that may add up in a loss."""


@final
@dataclass(frozen=True)
class Rounding:
    """The precision that an evaluation really has: that of the coarsest floating-point numbers in it.

    A model in float64 may take its norms in float32.

    eps: of the coarsest dtype; size: the largest output, in absolute value.
    """

    eps: float
    size: float

    @staticmethod
    def of_outputs(outputs: Tensor, coarsest: torch.dtype) -> "Rounding":
        """That of these outputs, which were computed no finer than in `coarsest`."""
        finite = outputs.detach()[torch.isfinite(outputs)]  # a masked answer may be infinite
        return Rounding(torch.finfo(coarsest).eps, float(finite.abs().max()) if finite.numel() else 0.0)

    def of(self, losses: Tensor) -> Tensor:
        """The allowed difference of each loss: relative to it or to the mean, and of rounding in the outputs."""
        size = losses.abs()
        return self.eps**0.5 * size.clamp_min(float(size.mean())) + UNITS * self.eps * self.size

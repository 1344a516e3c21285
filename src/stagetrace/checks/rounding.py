"""How far two right evaluations of the same losses may be apart."""

from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

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
    def seen(precision: "Precision", outputs: Tensor) -> "Rounding":
        """What was seen while these outputs were computed."""
        finite = outputs.detach()[torch.isfinite(outputs)]  # a masked answer may be infinite
        return Rounding(precision.eps, float(finite.abs().max()) if finite.numel() else 0.0)

    def of(self, losses: Tensor) -> Tensor:
        """The allowed difference of each loss: relative to it or to the mean, and of rounding in the outputs."""
        size = losses.abs()
        return self.eps**0.5 * size.clamp_min(float(size.mean())) + UNITS * self.eps * self.size


@final
class Precision(TorchDispatchMode):
    """Notices the coarsest floating-point dtype that any operation gives."""

    def __init__(self) -> None:
        super().__init__()
        self.eps = torch.finfo(torch.float64).eps

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor) and leaf.is_floating_point():
                self.eps = max(self.eps, torch.finfo(leaf.dtype).eps)
        return result

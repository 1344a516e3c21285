"""The precision a model computes in: the dtype of its parameters is not always that of its arithmetic.

Many models take their norms or their attention weights in single precision whatever their parameters are, and some
compute in half precision inside. Their results are rounded to that dtype, and a check that assumes the parameters'
dtype would report false errors.
"""

from typing import Any, final

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from stagetrace.stages.watch import Watch

__all__ = ["RoundedTo"]


@final
class RoundedTo(Watch):
    """Records the coarsest floating-point dtype of a result that has a finer argument; at first that of the parameters.

    Constants of a coarser dtype do not count: a sum with finer numbers is as fine as those.
    """

    def __init__(self, finest: torch.dtype) -> None:
        super().__init__()
        self.coarsest = finest

    def seen(self, operation: Any, arguments: tuple[Any, ...], options: dict[str, Any], results: Any) -> None:
        del operation
        given = _rounding((arguments, options))
        for dtype in _floating(results):
            if torch.finfo(dtype).eps > max(given, torch.finfo(self.coarsest).eps) and given:
                self.coarsest = dtype


def _floating(values: Any) -> set[torch.dtype]:
    """Floating-point dtypes of tensors of more than one number: a lone number is a constant or a count."""
    tensors = (leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor))
    return {tensor.dtype for tensor in tensors if tensor.is_floating_point() and tensor.numel() > 1}


def _rounding(values: Any) -> float:
    """The rounding of the finest tensor; 0 where there is none."""
    return min((torch.finfo(dtype).eps for dtype in _floating(values)), default=0.0)

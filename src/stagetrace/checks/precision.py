"""Are the data rounded where that matters: floating-point numbers are put into the dtype of the model's parameters."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from stagetrace.checks.rounding import Rounding
from stagetrace.errors import DataError
from stagetrace.stages.data import Batch
from stagetrace.stages.risk import Risk


def data_are_not_cut(risk: Risk, indices: Sequence[int], rounding: Rounding) -> str:
    """Refuse data of a finer dtype whose losses are others once they are rounded to the model's.

    A model may take large numbers in float64 and subtract them before its own float32 begins. Where it takes no other
    dtype than its own, there is nothing to compare.

    Raises:
        DataError: with an example, and its loss in either dtype.
    """
    fine, cut = (next(iter(reader([list(indices)]))) for reader in (risk.examples.read, risk.read))
    finer = [
        leaf for leaf in tree_leaves(fine.content) if isinstance(leaf, Tensor) and _is_finer(leaf, risk.trained.dtype)
    ]
    if not finer:
        return "no data of a finer dtype than the model's"
    with torch.no_grad():
        rounded = risk.losses(risk.trained_values, risk.inherited_values, cut)
        try:
            exact = risk.losses(risk.trained_values, risk.inherited_values, Batch(fine.indices, fine.content))
        except Exception:
            return f"data of {finer[0].dtype} are put into {risk.trained.dtype}; the model takes no other"
    gap = (exact.to(rounded) - rounded).abs()
    if bool((gap > rounding.of(rounded)).any()):
        worst = int(gap.argmax())
        raise DataError(
            f"{risk.where}: the data are {finer[0].dtype}, and rounded to the model's {risk.trained.dtype} they "
            f"change: the loss of example {fine.indices[worst]} is {float(exact[worst]):.6g} before and "
            f"{float(rounded[worst]):.6g} after; do in the data set what the model does first, such as an offset"
        )
    return f"data of {finer[0].dtype} lose nothing in {risk.trained.dtype}"


def _is_finer(leaf: Tensor, dtype: torch.dtype) -> bool:
    return leaf.is_floating_point() and torch.finfo(leaf.dtype).eps < torch.finfo(dtype).eps

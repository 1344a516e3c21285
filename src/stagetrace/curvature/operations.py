"""Floating-point operations, counted while they are computed."""

from typing import Any, final

import torch
from torch.utils.flop_counter import flop_registry

from stagetrace.stages.data import Batch
from stagetrace.stages.risk import Risk
from stagetrace.stages.watch import Watch

__all__ = ["Operations", "counted_operations"]


@final
class Operations(Watch):
    """Counts floating-point operations of matrix products and convolutions, by PyTorch's formulas, and all calls.

    As `torch.utils.flop_counter.FlopCounterMode` does, whose first use imports the compiler.

    Example:
        >>> with Operations() as counted:
        ...     _ = torch.ones(2, 3) @ torch.ones(3, 4)
        >>> counted.total
        48
    """

    def __init__(self) -> None:
        super().__init__()
        self.total = self.calls = 0

    def seen(self, operation: Any, arguments: tuple[Any, ...], options: dict[str, Any], results: Any) -> None:
        self.calls += 1
        formula = flop_registry.get(operation.overloadpacket)
        if formula is not None:
            self.total += int(formula(*arguments, **options, out_val=results))


def counted_operations(risk: Risk, batch: Batch) -> int:
    """Floating-point operations of a batch's forward pass, in matrix products and convolutions."""
    counted = Operations()
    with torch.no_grad(), counted:
        risk.losses(risk.trained_values, risk.inherited_values, batch)
    return counted.total

"""Starts that were computed: a parameter began at no parameter of the stage before, but at a function of some."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor

from stagetrace.errors import DescriptionError, first_line, refuse

ROUNDING = 16
"""How many roundings of the coarsest type a value may be away from what it was computed as."""


@final
@dataclass(frozen=True)
class Computed:
    """A start computed from parameters of the stage before: a weight that adapters were merged into, an average.

    It stands in a link's mapping where the name of the previous stage's parameter would. Whatever the link says then
    holds of

        W' = function(P_1, ..., P_m)

    in place of W': that it was kept, pulled at, or where recorded steps began. An influence on W' is handed on to each
    P by the transposed Jacobian of the function: `dq/dP = (dW'/dP)' dq/dW'`.

    Args:
        of: the names of the parameters P in the previous stage's model.
        function: their values in this order -> W' `[*shape]`; made of operations that PyTorch differentiates, and the
            same whenever it is called.

    Raises:
        DescriptionError: no names, or no function.

    Example:
        A linear layer into whose weight the low-rank update of the stage before was added:

        >>> from stagetrace import Frozen
        >>> merged = Computed(("base.weight", "down.weight", "up.weight"), lambda W, A, B: W + 2.0 * B @ A)
        >>> Frozen({"linear.weight": merged, "embedding": "embedding"}).computed
        {'linear.weight': a function of base.weight, down.weight, up.weight}
    """

    of: tuple[str, ...]
    function: Callable[..., Tensor]

    def __post_init__(self) -> None:
        names: Any = (self.of,) if isinstance(self.of, str) else self.of
        if not isinstance(names, (tuple, list)) or not names or not all(isinstance(name, str) for name in names):
            refuse(
                f"Computed: of= must be the names of the previous stage's parameters, got {self.of!r}; write "
                "Computed(('base.weight', 'down.weight', 'up.weight'), function)"
            )
        if len(set(names)) < len(names):
            refuse(
                f"Computed: of= names a parameter twice: {list(names)}; the function may use one as often as it likes"
            )
        if not callable(self.function):
            refuse(f"Computed: function= must take {len(names)} tensors and return one, got {self.function!r}")
        object.__setattr__(self, "of", tuple(names))

    def value(self, theirs: Mapping[str, Tensor]) -> Tensor:
        """`W'` at these parameters of the stage before, without a graph.

        Raises:
            DescriptionError: the function fails, or returns no tensor of real numbers.
        """
        with torch.no_grad():
            return self._called([theirs[name].detach() for name in self.of])

    def pulled_back(self, theirs: Mapping[str, Tensor], vectors: Tensor) -> dict[str, Tensor]:
        """`(dW'/dP)' v` for each of the parameters P, `[k, *shape of P]` by their names.

        vectors: `[k, *shape of W']`. A parameter that the function makes no use of gets zeros.

        Raises:
            DescriptionError: the function fails, or its value hangs on none of the parameters.
        """
        sources = [theirs[name].detach().requires_grad_() for name in self.of]
        with torch.enable_grad():
            value = self._called(sources)
        if not value.requires_grad:
            refuse(
                f"{self}: no derivative goes through the function to any of them; leave out .detach(), .data and "
                "torch.no_grad(), or share none of them"
            )
        last = len(vectors) - 1
        rows = [
            torch.autograd.grad(value, sources, vector.to(value), retain_graph=place < last, materialize_grads=True)
            for place, vector in enumerate(vectors)
        ]
        return {name: torch.stack(columns) for name, columns in zip(self.of, zip(*rows, strict=True), strict=True)}

    def agrees(self, given: Tensor, theirs: Mapping[str, Tensor]) -> bool:
        """Whether a value is `W'` to rounding."""
        value, given = self.value(theirs), given.detach()
        types = {given.dtype, value.dtype, *(theirs[name].dtype for name in self.of)}
        eps = max(torch.finfo(kind).eps for kind in types)
        size = max(float(value.abs().max()), *(float(theirs[name].detach().abs().max()) for name in self.of))
        return gap(given, value) <= ROUNDING * eps * size

    def _called(self, sources: list[Tensor]) -> Tensor:
        try:
            value: object = self.function(*sources)
        except Exception as cause:
            shapes = ", ".join(str(list(source.shape)) for source in sources)
            raise DescriptionError(
                f"{self}: the function fails on their values, of the shapes {shapes} "
                f"({type(cause).__name__}: {first_line(cause)})"
            ) from cause
        if not isinstance(value, Tensor) or not value.is_floating_point():
            got = str(value.dtype) if isinstance(value, Tensor) else type(value).__name__
            refuse(f"{self}: the function must return a tensor of real numbers, got {got}")
        return value

    def __repr__(self) -> str:
        return f"a function of {', '.join(self.of)}"


Origin = str | Computed
"""What a shared parameter came from: the previous stage's parameter of this name, or a function of several."""


def gap(one: Tensor, other: Tensor) -> float:
    """The largest difference of two tensors."""
    return float((one.detach().cpu().double() - other.detach().cpu().double()).abs().max()) if one.numel() else 0.0


def sources_of(origins: Iterable[Origin]) -> set[str]:
    """The names of all parameters of the stage before that these come from."""
    return {name for origin in origins for name in ((origin,) if isinstance(origin, str) else origin.of)}


def by_name(origins: Mapping[str, Origin]) -> dict[str, str]:
    """Those that are a parameter of the stage before, not computed from several."""
    return {name: origin for name, origin in origins.items() if isinstance(origin, str)}


def start_of(origin: Origin, theirs: Mapping[str, Tensor]) -> Tensor:
    """What a parameter came from, at these values of the stage before's parameters."""
    return theirs[origin].detach() if isinstance(origin, str) else origin.value(theirs)

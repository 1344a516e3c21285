"""Per-example gradients of any parameters by autograd alone: for what no tap sees."""

from collections.abc import Iterator, Sequence
from typing import final

import torch
from torch import Tensor
from torch.func import vjp, vmap
from torch.utils._pytree import tree_leaves, tree_map

from stagetrace.errors import DifferentiationError, first_line
from stagetrace.stages.data import Batch
from stagetrace.stages.risk import Risk
from stagetrace.stages.space import Params
from stagetrace.taps.gradients import BYTES, wide

__all__ = ["Rest"]


@final
class Rest:
    """The pullbacks of examples' output gradients in some parameters, by `vmap` where the model allows it.

    names: the parameters, in the order of the result.
    """

    def __init__(self, risk: Risk, names: Sequence[str]) -> None:
        self.risk, self.names = risk, tuple(names)
        self._at_once: bool | None = None

    def gradients(self, batch: Batch, cotangents: Tensor) -> Iterator[Tensor]:
        """The gradients of `<outputs_i, cotangents[s, i]>` for `s` cotangents `[s, batch, ...]`: `[s, examples, size]`
        for some examples at a time.
        """
        if self._at_once is None:
            self._at_once = self._works(batch, cotangents)
        if not self._at_once:
            yield from self._one_by_one(batch, cotangents)
            return
        step = max(1, BYTES // (4 * len(cotangents) * self.size))
        for first in range(0, len(batch), step):
            part = slice(first, first + step)
            content = tree_map(lambda leaf: leaf[part], batch.content)  # noqa: B023
            yield self._together(Batch(batch.indices[part], content), cotangents[:, part])

    def whole(self, batch: Batch, cotangent: Tensor) -> Tensor:
        """The gradients `[batch, size]` along one cotangent `[batch, ...]`, by a backward pass for each example."""
        return torch.cat([each[0] for each in self._one_by_one(batch, cotangent.unsqueeze(0))])

    @property
    def size(self) -> int:
        return sum(value.numel() for value in self._values.values())

    @property
    def _values(self) -> Params:
        return {name: self.risk.trained_values[name] for name in self.names}

    def _works(self, batch: Batch, cotangents: Tensor) -> bool:
        """Whether `vmap` gives what autograd gives."""
        leaves = tree_leaves(batch.content)
        if not all(isinstance(leaf, Tensor) and leaf.ndim and len(leaf) == len(batch) for leaf in leaves):
            return False
        try:
            found = self._together(batch, cotangents[:1])
        except (RuntimeError, NotImplementedError, ValueError, TypeError):
            return False
        right = self.whole(batch, cotangents[0])
        return bool(
            (found[0] - right).norm() <= max(torch.finfo(found.dtype).eps, self.risk.rounding) ** 0.5 * right.norm()
        )

    def _together(self, batch: Batch, cotangents: Tensor) -> Tensor:
        def one(content: object, along: Tensor) -> Tensor:
            single = Batch([0], tree_map(lambda leaf: leaf.unsqueeze(0), content))
            _, back, *_ = vjp(lambda values: self._outputs(values, single), self._values)

            def pulled(cotangent: Tensor) -> Tensor:
                (found,) = back(cotangent.unsqueeze(0))
                return torch.cat([wide(found[name]).reshape(-1) for name in self.names])

            return vmap(pulled)(along)

        return vmap(one, in_dims=(0, 1), out_dims=1)(batch.content, cotangents).detach()

    def _one_by_one(self, batch: Batch, cotangents: Tensor) -> Iterator[Tensor]:
        """A backward pass for each example, the batch evaluated once."""
        values = {name: value.detach().requires_grad_() for name, value in self._values.items()}
        with torch.enable_grad():
            outputs = self._outputs(values, batch)
        if not outputs.requires_grad:
            yield torch.zeros(len(cotangents), len(batch), self.size, dtype=self._dtype, device=outputs.device)
            return
        alone = torch.zeros_like(outputs)
        for place in range(len(batch)):
            rows: list[Tensor] = []
            for along in cotangents:
                alone[place] = along[place].to(alone.dtype)
                slopes = self._slopes(outputs, tuple(values.values()), alone)
                rows.append(torch.cat([slope.to(self._dtype).reshape(-1) for slope in slopes]))
            alone[place] = 0
            yield torch.stack(rows).unsqueeze(1)

    def _slopes(self, outputs: Tensor, values: tuple[Tensor, ...], along: Tensor) -> tuple[Tensor, ...]:
        try:
            with torch.enable_grad():  # of a number: given a cotangent, PyTorch imports its compiler
                paired = (outputs * along).sum()
            return torch.autograd.grad(paired, values, retain_graph=True, materialize_grads=True)
        except RuntimeError as cause:
            raise DifferentiationError(
                f"{self.risk.where}: the outputs cannot be differentiated for each example ({first_line(cause)}); use "
                "another curvature than EKFAC()"
            ) from cause

    @property
    def _dtype(self) -> torch.dtype:
        return wide(torch.empty(0, dtype=self.risk.trained.dtype)).dtype

    def _outputs(self, values: Params, batch: Batch) -> Tensor:
        return self.risk.outputs({**self.risk.trained_values, **values}, self.risk.inherited_values, batch)

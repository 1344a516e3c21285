"""A set of named parameters as one flat vector, and back."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import final

import torch
from torch import Tensor

from stagetrace.errors import DescriptionError

Params = dict[str, Tensor]
"""Parameters, or tangents of parameters, by their name in the stage's model."""


@final
@dataclass(frozen=True)
class ParameterSpace:
    """Named parameters in a fixed order; vectors `[size]` concatenate them, flattened, in that order.

    Vectors have the widest dtype among the parameters and live on their device.

    Example:
        >>> import torch
        >>> space = ParameterSpace.of({"w": torch.ones(2, 2), "b": torch.zeros(1)})
        >>> space.flatten({"w": torch.ones(2, 2), "b": torch.zeros(1)})
        tensor([1., 1., 1., 1., 0.])
        >>> space.unflatten(torch.arange(5.0))["b"]
        tensor([4.])
    """

    names: tuple[str, ...]
    shapes: tuple[torch.Size, ...]
    dtypes: tuple[torch.dtype, ...]
    dtype: torch.dtype
    device: torch.device

    @staticmethod
    def of(params: Mapping[str, Tensor], like: Tensor | None = None) -> "ParameterSpace":
        """The space of these parameters; an empty one takes dtype and device from `like`.

        Raises:
            DescriptionError: the parameters are not floating point, or lie on several devices.
        """
        dtype = like.dtype if like is not None else torch.float32
        devices = {p.device for p in params.values()}
        if len(devices) > 1:
            raise DescriptionError(
                f"parameters lie on several devices ({', '.join(sorted(map(str, devices)))}); move the model to one"
            )
        for number, (name, p) in enumerate(params.items()):
            if not p.is_floating_point():
                raise DescriptionError(
                    f"parameter '{name}' has dtype {p.dtype}; only real floating-point parameters can be trained or "
                    "shared: leave it out of the link, or make it a buffer"
                )
            dtype = p.dtype if number == 0 else torch.promote_types(dtype, p.dtype)
        return ParameterSpace(
            tuple(params),
            tuple(p.shape for p in params.values()),
            tuple(p.dtype for p in params.values()),
            dtype,
            devices.pop() if devices else (like.device if like is not None else torch.device("cpu")),
        )

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        return tuple(shape.numel() for shape in self.shapes)

    @cached_property
    def size(self) -> int:
        return sum(self.sizes)

    def zeros(self, columns: int) -> Tensor:
        """`[size, columns]` of zeros."""
        return torch.zeros(self.size, columns, dtype=self.dtype, device=self.device)

    def flatten(self, params: Mapping[str, Tensor]) -> Tensor:
        """One vector `[size]` from named tensors."""
        if not self.names:
            return self.zeros(0).new_zeros(0)
        return torch.cat([params[name].reshape(-1).to(self.dtype) for name in self.names])

    def unflatten(self, vector: Tensor) -> Params:
        """Named tensors from one vector `[size]`, each in its parameter's shape and dtype."""
        pieces = vector.split(self.sizes)
        return {
            name: piece.reshape(shape).to(dtype)
            for name, piece, shape, dtype in zip(self.names, pieces, self.shapes, self.dtypes, strict=True)
        }

    def unflatten_columns(self, vectors: Tensor) -> Params:
        """Named tensors `[k, *shape]` from `[size, k]`."""
        pieces = vectors.mT.split(self.sizes, dim=1)
        return {
            name: piece.reshape(vectors.shape[1], *shape).to(dtype)
            for name, piece, shape, dtype in zip(self.names, pieces, self.shapes, self.dtypes, strict=True)
        }

    def flatten_columns(self, params: Mapping[str, Tensor]) -> Tensor:
        """`[size, k]` from named tensors `[k, *shape]`."""
        return torch.cat([params[name].reshape(len(params[name]), -1).to(self.dtype) for name in self.names], dim=1).mT

    def mask(self, names: Iterable[str]) -> Tensor:
        """`[size]`: one on the entries of the named parameters, zero elsewhere."""
        chosen = set(names)
        blocks = [
            torch.full((size,), float(name in chosen), dtype=self.dtype, device=self.device)
            for name, size in zip(self.names, self.sizes, strict=True)
        ]
        return torch.cat(blocks) if blocks else self.zeros(0).new_zeros(0)

    def slices(self) -> dict[str, slice]:
        """Where each parameter lies in the vector."""
        where, start = {}, 0
        for name, size in zip(self.names, self.sizes, strict=True):
            where[name] = slice(start, start + size)
            start += size
        return where

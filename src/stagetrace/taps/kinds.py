"""Layers whose weight is a matrix on rows: what they read and what they gave, as rows of examples.

Such a layer computes `out = W row + b` at each of an example's positions. The gradient of a loss in W is then the sum
over the example's positions of `(gradient in out) row'`, and in b that of `(gradient in out)`.
"""

import math
from abc import ABC, abstractmethod
from typing import Any, final

import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["KINDS", "Convolution", "Dense", "Kind", "Lookup", "Transposed", "kind_of"]


class Kind(ABC):
    """How to read rows off a layer's input and output.

    `transposed` says whether the weight is stored as `[inputs, outputs]`.
    """

    transposed = False

    @abstractmethod
    def recognises(self, module: nn.Module) -> bool:
        """Whether the layer computes what this kind says, and nothing else."""

    @abstractmethod
    def rows(self, module: Any, given: Tensor) -> Tensor:
        """The input's rows `[units, positions, inputs]`; whole numbers `[units, positions]` where it looks up."""

    @abstractmethod
    def outputs(self, given: Tensor) -> Tensor:
        """Gradients in the output as `[units, positions, outputs]`."""

    @property
    def splits_positions(self) -> bool:
        """Whether every position stands alone, so that any of them may belong to any example."""
        return True


@final
class Dense(Kind):
    """`nn.Linear`: rows are the last axis."""

    def recognises(self, module: nn.Module) -> bool:
        return _computes_as(module, nn.Linear)

    def rows(self, module: Any, given: Tensor) -> Tensor:
        return _positions(given)

    def outputs(self, given: Tensor) -> Tensor:
        return _positions(given)


@final
class Transposed(Kind):
    """`Conv1D` of transformers: a linear layer whose weight is `[inputs, outputs]`. Recognised without an import."""

    transposed = True

    def recognises(self, module: nn.Module) -> bool:
        kind = type(module)
        known = (kind.__module__, kind.__name__) == ("transformers.pytorch_utils", "Conv1D")
        return known and "forward" not in vars(module)

    def rows(self, module: Any, given: Tensor) -> Tensor:
        return _positions(given)

    def outputs(self, given: Tensor) -> Tensor:
        return _positions(given)


@final
class Convolution(Kind):
    """`nn.Conv1d` and `nn.Conv2d` without groups: rows are the patches that the kernel sees."""

    def recognises(self, module: nn.Module) -> bool:
        return isinstance(module, nn.Conv1d | nn.Conv2d) and module.groups == 1 and _computes_as(module, type(module))

    def rows(self, module: Any, given: Tensor) -> Tensor:
        return _patches(*_padded(module, given)).mT

    @staticmethod
    def channels_last(module: Any, given: Tensor) -> Tensor | None:
        """The same rows with the channels last, `[units, positions, kernel x channels]`; None where that gains nothing.

        What is copied in one piece is then a kernel's row of all channels, and not a row of the output.
        """
        padded, kernel, dilation, stride = _padded(module, given)
        height, width = _places(padded, kernel, dilation, stride)
        if height * width == 1 or kernel[1] * padded.shape[1] <= width:
            return None
        last = padded.permute(0, 2, 3, 1).contiguous()
        units, down, right, channels = last.stride()
        strides = (units, down * stride[0], right * stride[1], down * dilation[0], right * dilation[1], channels)
        seen = last.as_strided((len(last), height, width, *kernel, last.shape[3]), strides)
        return seen.reshape(len(last), height * width, -1)

    def outputs(self, given: Tensor) -> Tensor:
        return given.flatten(2).mT

    @property
    def splits_positions(self) -> bool:
        return False


@final
class Lookup(Kind):
    """`nn.Embedding`: a row is the number of a line of the table; the padding's line gets no gradient."""

    def recognises(self, module: nn.Module) -> bool:
        return isinstance(module, nn.Embedding) and _computes_as(module, nn.Embedding) and module.max_norm is None

    def rows(self, module: Any, given: Tensor) -> Tensor:
        return given.reshape(len(given), math.prod(given.shape[1:]))

    def outputs(self, given: Tensor) -> Tensor:
        return _positions(given)


KINDS: tuple[Kind, ...] = (Dense(), Transposed(), Convolution(), Lookup())
"""Every kind of layer that is taken for a matrix."""


def kind_of(module: nn.Module) -> Kind | None:
    """The kind of a layer; None where it is none of them, or computes something of its own."""
    return next((kind for kind in KINDS if kind.recognises(module)), None)


_Two = tuple[int, ...]


def _padded(module: Any, given: Tensor) -> tuple[Tensor, _Two, _Two, _Two]:
    """The input as a convolution over two axes sees it, and its kernel, dilation and stride."""
    padded, padding = given, tuple(module.padding) if not isinstance(module.padding, str) else None
    if padding is None or module.padding_mode != "zeros":  # PyTorch's own names for what it adds on each side
        mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
        padded = F.pad(given, module._reversed_padding_repeated_twice, mode=mode)
        padding = (0,) * module.weight[0, 0].ndim
    kernel, dilation, stride = tuple(module.kernel_size), tuple(module.dilation), tuple(module.stride)
    if len(kernel) == 1:
        padded, kernel, dilation, stride = padded.unsqueeze(2), (1, *kernel), (1, *dilation), (1, *stride)
        padding = (0, *padding)
    if any(padding):
        padded = F.pad(padded, (padding[1], padding[1], padding[0], padding[0]))
    return padded, kernel, dilation, stride


def _places(given: Tensor, kernel: _Two, dilation: _Two, stride: _Two) -> tuple[int, int]:
    """Places of a kernel, down and across."""
    height, width = (
        (size - reach * (length - 1) - 1) // step + 1
        for size, length, reach, step in zip(given.shape[2:], kernel, dilation, stride, strict=True)
    )
    return height, width


def _patches(given: Tensor, kernel: _Two, dilation: _Two, stride: _Two) -> Tensor:
    """What a kernel sees at each of its places, `[units, channels x kernel, places]`: `F.unfold` as a strided copy."""
    height, width = _places(given, kernel, dilation, stride)
    units, channels, down, right = given.stride()
    strides = (units, channels, down * dilation[0], right * dilation[1], down * stride[0], right * stride[1])
    seen = given.as_strided((*given.shape[:2], *kernel, height, width), strides, given.storage_offset())
    return seen.reshape(len(given), -1, height * width)


def _positions(given: Tensor) -> Tensor:
    """`[units, ..., size]` as `[units, positions, size]`; also where there are no units."""
    return given.reshape(len(given), math.prod(given.shape[1:-1]), given.shape[-1])


def _computes_as(module: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether a layer's `forward` is that of PyTorch's class, and its weight a parameter of its own."""
    own = module._parameters.get("weight") is not None  # pyright: ignore[reportPrivateUsage]
    known = next((base for base in (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Embedding) if isinstance(module, base)), None)
    same = known is not None and type(module).forward is known.forward
    return own and isinstance(module, kind) and same and "forward" not in vars(module)

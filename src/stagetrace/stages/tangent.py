"""Forward mode with nothing multiplied by zero: the tangent rules of linear and convolutional layers, once more.

A layer `y = W * x + b` (a product or a convolution, bilinear in W and x) has the tangent

    y' = W' * x  +  W * x'  +  b'

PyTorch's rules compute all three terms even where x has no tangent, as the data in a network's first layer: there
`W * x'` is a convolution of zeros, as large as the others. And `W * x` and `W' * x` share their input, so one call with
the stacked weights `[W; W']` computes both, unfolding x once. Per layer with a tangent in its input that leaves two
calls instead of three, and one in the first.

A cross-entropy of logits z and the label y has the tangent `softmax(z) . z' - z'_y`: three passes over z, where
PyTorch's rule goes through log-softmax in twice as many. All other operations follow PyTorch's own rules.
"""

from collections.abc import Callable, Mapping
from typing import Any, final

import torch
import torch.autograd.forward_ad as forward_ad
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

OUTPUT_CHANNELS: dict[Callable[..., Tensor], int] = {F.linear: -1, F.conv1d: -2, F.conv2d: -3, F.conv3d: -4}
"""Where the layers' output channels lie, counted from the end."""

PLAIN = {"reduction": "none", "label_smoothing": 0.0, "weight": None, "size_average": None, "reduce": None}
"""The options of a cross-entropy that the rule here is for; `ignore_index` may be any."""

GROUPS = 6
"""The position of a convolution's `groups` among its arguments; stacked weights would mix the groups up."""


def directional(
    function: Callable[[dict[str, Tensor]], Tensor], at: Mapping[str, Tensor], along: Mapping[str, Tensor]
) -> tuple[Tensor, Tensor]:
    """The value of a function of named tensors, and its derivative along a direction; equal to `torch.func.jvp`.

    Example:
        >>> point, direction = {"w": torch.tensor([[2.0]])}, {"w": torch.tensor([[1.0]])}
        >>> directional(lambda p: F.linear(torch.tensor([3.0]), p["w"]), point, direction)
        (tensor([6.]), tensor([3.]))
    """
    with forward_ad.dual_level(), _Stacked():
        value = function({name: forward_ad.make_dual(tensor, along[name]) for name, tensor in at.items()})
        primal, tangent = forward_ad.unpack_dual(value)
    return primal, torch.zeros_like(primal) if tangent is None else tangent


@final
class _Stacked(TorchFunctionMode):
    """Computes a linear layer and its tangent by stacked weights; everything else as PyTorch does."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        options = kwargs or {}
        if func in OUTPUT_CHANNELS and len(args) >= 2 and not {"input", "weight"} & set(options):
            grouped = options.get("groups", args[GROUPS] if len(args) > GROUPS else 1) != 1
            weight = forward_ad.unpack_dual(args[1])
            if weight.tangent is not None and not grouped:
                return _layer(func, args, options)
        if func is F.cross_entropy and _is_plain(args, options):
            return _cross_entropy(args, options["ignore_index"])
        return func(*args, **options)


def _layer(layer: Callable[..., Tensor], args: tuple[Any, ...], options: dict[str, Any]) -> Tensor:
    """`(y, y')` of one layer whose weight has a tangent."""
    rest, named = args[3:], {name: value for name, value in options.items() if name != "bias"}
    x, dx, *_ = forward_ad.unpack_dual(args[0])
    weight = _stacked(args[1])
    bias = args[2] if len(args) > 2 else options.get("bias")
    y, dy = layer(x, weight, None if bias is None else _stacked(bias), *rest, **named).chunk(2, OUTPUT_CHANNELS[layer])
    if dx is not None:
        dy = dy + layer(dx, weight[: len(weight) // 2], None, *rest, **named)
    return forward_ad.make_dual(y, dy)


def _is_plain(args: tuple[Any, ...], options: Mapping[str, Any]) -> bool:
    """Whether a cross-entropy is that of rows of logits with a tangent and their classes, each loss for itself."""
    if len(args) != 2 or {**options, "ignore_index": None} != {**PLAIN, "ignore_index": None}:
        return False
    logits, labels = args
    return logits.ndim == 2 and labels.ndim == 1 and forward_ad.unpack_dual(logits).tangent is not None


def _cross_entropy(args: tuple[Tensor, ...], ignored: int) -> Tensor:
    """`(loss, loss')`, `[rows]`, of logits `[rows, classes]` and labels; at ignored labels both are 0."""
    logits, labels = args
    z, dz, *_ = forward_ad.unpack_dual(logits)
    assert z is not None
    assert dz is not None
    losses = F.cross_entropy(z, labels, reduction="none", ignore_index=ignored)
    kept = labels != ignored
    own = torch.where(kept, labels, 0).unsqueeze(1)
    partition = losses.unsqueeze(1) + z.gather(1, own)  # log of the sum of exp(z): loss = log sum - z_y
    slopes = torch.linalg.vecdot((z - partition).exp(), dz) - dz.gather(1, own).squeeze(1)
    # where nothing is predicted the slope may be no number
    return forward_ad.make_dual(losses, torch.where(kept, slopes, 0.0))


def _stacked(parameter: Tensor) -> Tensor:
    """A parameter and its tangent, one below the other; zeros where it has none."""
    value, tangent, *_ = forward_ad.unpack_dual(parameter)
    assert value is not None
    return torch.cat([value, torch.zeros_like(value) if tangent is None else tangent])

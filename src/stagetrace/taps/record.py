"""One forward pass with a tap behind each layer: what the layers were given, and what they gave.

Behind each tapped layer a constant of zeros is added to its output, and the gradient of a loss in that constant is the
gradient in the layer's output, whatever is done with it afterwards, in place or not. Inside of the layers no parameter
requires a gradient, so that a backward pass computes these alone and no weight's gradient; one that is used outside of
them, too, is noticed (`inside`).

A layer whose output has no axis of examples (position ids that are the same for all) is given one: its output is
repeated for each example, or the examples' gradients would be added up. A layer whose output has the examples in
another order (time first, tokens of all examples in one list, some tokens only) is told apart by two backward passes,
with the examples' gradients in the outputs times different powers of two: a row that is an example's own comes out
times its power exactly, and anything else is refused.
"""

from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, final

import torch
from torch import Tensor, nn

from stagetrace.errors import DifferentiationError, first_line
from stagetrace.stages.data import Batch
from stagetrace.stages.recomputing import kept
from stagetrace.stages.risk import Risk
from stagetrace.taps.inside import UnseenError, constant_inside

__all__ = ["MOST_SCATTERED", "Axis", "Call", "Record", "Taps", "axes_of", "shapes_in"]

Axis = Literal["first", "one", "none", "elsewhere"]
"""Where a layer's output has the axis of examples: first; first and of size one; it has none; in another place."""

MOST_SCATTERED = 32
"""Examples of a batch in which rows are told apart: their powers of two stay within single precision."""


@final
@dataclass(eq=False)
class Call:
    """A call of a tapped layer: what it was given, and the constant that was added to its output."""

    given: tuple[Any, ...]
    named: Mapping[str, Any]
    added: Tensor
    scattered: bool

    @property
    def input(self) -> Tensor:
        """Its first argument."""
        return self.given[0] if self.given else next(iter(self.named.values()))


@final
@dataclass(eq=False)
class Record:
    """A batch's outputs `[batch, ...]`, on a graph that begins at the taps, and the calls of every layer by place."""

    where: str
    size: int
    outputs: Tensor
    calls: dict[str, list[Call]] = field(default_factory=dict[str, list[Call]])
    watched: Mapping[str, Tensor] = field(default_factory=dict[str, Tensor])

    @property
    def scattered(self) -> bool:
        """Whether a layer gave rows that are not one for each example, in their order."""
        return any(call.scattered for calls in self.calls.values() for call in calls)

    def gradients(self, cotangent: Tensor, keep: bool = True) -> dict[str, list[Tensor]]:
        """The gradients of `<outputs, cotangent>` in the output of every call; zero where a call did not matter.

        keep: whether the graph is kept for another call.

        Raises:
            UnseenError: a watched parameter is used outside of its layers, too.
            DifferentiationError: PyTorch cannot take them.
        """
        every = [call for calls in self.calls.values() for call in calls]
        if not self.outputs.requires_grad:
            return {place: [torch.zeros_like(call.added) for call in calls] for place, calls in self.calls.items()}
        try:
            with torch.enable_grad():
                paired = (self.outputs * cotangent.to(self.outputs.dtype)).sum()
            found = torch.autograd.grad(  # of a number: given a cotangent, PyTorch imports its compiler
                paired,
                [*(call.added for call in every), *self.watched.values()],
                retain_graph=keep,
                allow_unused=True,
            )
        except RuntimeError as cause:
            raise DifferentiationError(
                f"{self.where}: the gradients in the layers' outputs cannot be taken ({first_line(cause)})"
            ) from cause
        self._refuse_unseen(found[len(every) :])
        given = iter(_or_zeros(slope, call.added) for call, slope in zip(every, found, strict=False))
        return {place: [next(given) for _ in calls] for place, calls in self.calls.items()}

    def _refuse_unseen(self, slopes: Sequence[Tensor | None]) -> None:
        """Refuse what depends on a parameter outside of its layers; with a derivative of 0 it does not."""
        for name, slope in zip(self.watched, slopes, strict=True):
            if slope is not None and bool(slope.count_nonzero()):
                raise UnseenError(
                    f"{self.where}: some examples use '{name}' outside of its layer, where a tap behind the layer does "
                    "not see it; use another curvature than EKFAC(), or call the layer instead of using its parameter"
                )

    def owners(self) -> dict[str, list[Tensor | None]]:
        """For the calls whose rows are scattered: the example `[units, ...]` that each row of the output belongs to.

        -1: no row of which an output depends on. None: the examples are the first axis.

        Raises:
            DifferentiationError: a row depends on several examples.
        """
        if not self.scattered:
            return {place: [None] * len(calls) for place, calls in self.calls.items()}
        generator = torch.Generator().manual_seed(0)
        drawn = torch.randn(self.outputs.shape, generator=generator).to(self.outputs)
        powers = torch.arange(self.size, device=drawn.device) - self.size // 2
        plain = self.gradients(drawn)
        scaled = self.gradients(drawn * torch.exp2(powers).to(drawn).reshape(-1, *[1] * (drawn.ndim - 1)))
        return {
            place: [
                self._owners(place, one, two) if call.scattered else None
                for call, one, two in zip(calls, plain[place], scaled[place], strict=True)
            ]
            for place, calls in self.calls.items()
        }

    def _owners(self, place: str, plain: Tensor, scaled: Tensor) -> Tensor:
        """The example of each row: the last axis is what a row is, whatever is before it."""
        one, two = plain.double(), scaled.double()
        live = (one != 0).any(dim=-1)
        ratio = torch.where(live, (one * two).sum(-1) / (one * one).sum(-1).clamp_min(1e-300), 1.0)
        power = torch.log2(ratio.clamp_min(1e-300)).round()
        off = (two - torch.exp2(power).unsqueeze(-1) * one).norm(dim=-1) > 1e-3 * two.norm(dim=-1)
        owner = power.long() + self.size // 2
        if bool((live & (off | (owner < 0) | (owner >= self.size))).any()):
            raise DifferentiationError(
                f"{self.where}: a row of the output of '{place}' depends on several examples of a batch, so it has no "
                "gradient of its own for each; use another curvature than EKFAC(), or a model whose examples do not mix"
            )
        return torch.where(live, owner, -1)


@final
class Taps:
    """The layers of a model that are tapped, by their places, and where their outputs have the examples.

    watched: by place, a layer's own parameters, by their attribute, that must not be used outside of it.
    """

    def __init__(
        self,
        risk: Risk,
        modules: Mapping[str, nn.Module],
        axes: Mapping[str, Axis],
        watched: Mapping[str, Mapping[str, str]] | None = None,
    ) -> None:
        self.risk, self.modules, self.axes = risk, modules, axes
        self.watched: Mapping[str, Mapping[str, str]] = watched or {}

    @property
    def scatters(self) -> bool:
        """Whether rows of a layer have to be told apart."""
        return any(axis == "elsewhere" for axis in self.axes.values())

    def record(self, batch: Batch) -> Record:
        """The forward pass of a batch."""
        calls: dict[str, list[Call]] = {place: [] for place in self.modules}
        names = {name for keys in self.watched.values() for name in keys.values()}
        leaves = {name: self.risk.trained_values[name].detach().requires_grad_() for name in sorted(names)}
        inside = constant_inside((self.modules[place], keys) for place, keys in self.watched.items())
        with inside, self._hooked(calls, len(batch)), kept(), torch.enable_grad():  # a hook sees each call once
            outputs = self.risk.outputs({**self.risk.trained_values, **leaves}, self.risk.inherited_values, batch)
        return Record(self.risk.where, len(batch), outputs, calls, leaves)

    @contextmanager
    def _hooked(self, calls: dict[str, list[Call]], size: int) -> Generator[None]:
        handles = [
            module.register_forward_hook(self._hook(calls[place], self.axes[place], size), with_kwargs=True)
            for place, module in self.modules.items()
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    @staticmethod
    def _hook(calls: list[Call], axis: Axis, size: int) -> Any:
        def hook(module: nn.Module, given: tuple[Any, ...], named: Mapping[str, Any], output: Any) -> Any:
            del module
            if not isinstance(output, Tensor) or not output.is_floating_point():
                return None
            if axis == "one" and output.shape[:1] == (1,):
                output, given, named = _repeated(output, size), *_each(given, named, lambda t: _repeated(t, size))
            elif axis == "none":
                output, given, named = _stacked(output, size), *_each(given, named, lambda t: _stacked(t, size))
            # a constant without memory of its own; a leaf, so that its gradient is whole
            added = output.new_zeros(()).expand(output.shape).requires_grad_()
            scattered = axis == "elsewhere" or output.shape[:1] != (size,)
            # a layer that is trained keeps its input for its own gradient, so that a model cannot write into it later
            calls.append(
                Call(tuple(map(_detached, given)), {key: _detached(v) for key, v in named.items()}, added, scattered)
            )
            return output + added

        return hook


def axes_of(seen: Sequence[tuple[int, Mapping[str, list[tuple[int, ...]]]]]) -> dict[str, Axis]:
    """Where each layer's outputs have the examples, from the shapes in batches of different sizes."""
    found: dict[str, Axis] = {}
    for place in seen[0][1]:
        shapes = [(size, shape) for size, calls in seen for shape in calls[place]]
        if shapes and all(shape[:1] == (size,) for size, shape in shapes):
            found[place] = "first"
        elif shapes and all(shape[:1] == (1,) for _, shape in shapes):
            found[place] = "one"
        elif shapes and all(
            0 not in shape and seen[0][1][place] == calls[place] for _, calls in seen for shape in calls[place]
        ):
            found[place] = "none"
        else:  # also of layers that were not called, as experts may be
            found[place] = "elsewhere"
    return found


def shapes_in(risk: Risk, modules: Mapping[str, nn.Module], batch: Batch) -> dict[str, list[tuple[int, ...]]]:
    """The shapes of the layers' outputs, call by call, in a pass that changes nothing."""
    found: dict[str, list[tuple[int, ...]]] = {place: [] for place in modules}

    def hook(place: str) -> Any:
        def seen(module: nn.Module, given: Any, output: Any) -> None:
            del module, given
            found[place].append(tuple(output.shape) if isinstance(output, Tensor) else ())

        return seen

    handles = [module.register_forward_hook(hook(place)) for place, module in modules.items()]
    try:
        with torch.no_grad():
            risk.outputs(risk.trained_values, risk.inherited_values, batch)
    finally:
        for handle in handles:
            handle.remove()
    return found


def _or_zeros(slope: Tensor | None, like: Tensor) -> Tensor:
    return torch.zeros_like(like) if slope is None else slope


def _repeated(tensor: Tensor, size: int) -> Tensor:
    return tensor.expand(size, *tensor.shape[1:]) if tensor.shape[:1] == (1,) else tensor


def _stacked(tensor: Tensor, size: int) -> Tensor:
    return tensor.expand(size, *tensor.shape)


def _each(given: tuple[Any, ...], named: Mapping[str, Any], change: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    changed = tuple(change(value) if isinstance(value, Tensor) else value for value in given)
    return changed, {key: change(value) if isinstance(value, Tensor) else value for key, value in named.items()}


def _detached(value: Any) -> Any:
    return value.detach() if isinstance(value, Tensor) else value

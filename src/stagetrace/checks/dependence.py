"""Does the loss depend on the parameters it is given, and on nothing else that can be trained?"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from stagetrace.checks.directions import direction_of, weights_of
from stagetrace.checks.finding import Level
from stagetrace.errors import DataError, DescriptionError, some_names
from stagetrace.stages.data import Batch
from stagetrace.stages.gradient import differentiated
from stagetrace.stages.risk import Risk
from stagetrace.stages.space import Params
from stagetrace.stages.stage import Stage
from stagetrace.stages.watch import Watch

BATCHES = 16
"""Batches that are tried before a loss is refused because its gradient is zero."""


@final
@dataclass(frozen=True)
class WeightedGradient:
    """The gradient of some examples' losses, weighted by `weights_of` and summed.

    of: `{parameter: gradient}` where there is one that is not zero; flat: the other parameters.
    """

    of: Params
    flat: tuple[str, ...]


def depends_on_its_model_only(risk: Risk, batch: Batch, before: Sequence[Stage] = ()) -> tuple[Level, str]:
    """Refuse a loss that depends on anything trainable but the parameters it is given.

    The losses are evaluated with copies in the places of the model's parameters: an operation that is given an
    original, or a gradient that flows into another tensor, comes from a second model.

    before: the stages before this one; a loss that reads their models (a teacher's) is a second path from their
        examples, which no score has.

    Returns:
        How much it matters, and what was found.

    Raises:
        DescriptionError: the loss reads the model itself, or a trainable tensor that is no parameter of it.
    """
    trained, inherited = leaves_of(risk.trained_values), leaves_of(risk.inherited_values)
    watch = _Originals.at(risk, batch)
    teachers = _Originals.of(before, besides=risk)
    with torch.enable_grad():
        with watch, teachers:
            total = risk.losses(trained, inherited, batch).sum()
        again = risk.losses(trained, inherited, batch).sum()
    if watch.read:
        _refuse_second_model(risk, watch.read)
    _refuse_strangers(risk, batch, (total, again), {**inherited, **trained})
    if teachers.read:
        return Level.WARNING, (
            f"the loss reads {some_names(teachers.read)} of an earlier stage's model (a teacher?): effects along that "
            "path are not in that stage's scores, which contain only what passes through the link"
        )
    return Level.OK, "the loss depends on no other trainable tensors than the parameters it is given"


def weighted_gradient(risk: Risk, batch: Batch) -> WeightedGradient:
    """Differentiate a batch's losses, weighted, by plain autograd.

    Raises:
        DifferentiationError: the gradient cannot be taken.
    """
    _, trained, inherited = differentiated(risk, batch, weights_of(batch))
    found = {**inherited, **trained}
    steep = {name: slope for name, slope in found.items() if bool(slope.any())}
    return WeightedGradient(steep, tuple(name for name in found if name not in steep))


def check_gradient_not_zero(risk: Risk, found: WeightedGradient) -> str | None:
    """Refuse a loss whose gradient is zero in all parameters that the stage trained, on many examples.

    found: the gradient of a few examples; where it is zero (a hinge loss may be zero on many), others are tried.

    Returns:
        A warning where the gradient is zero in all inherited parameters; None otherwise.

    Raises:
        DataError: the gradient is zero on all of them.
    """
    plan = [] if set(found.of) & set(risk.trained_values) else risk.examples.batch_indices()[:BATCHES]
    if plan and not any(set(weighted_gradient(risk, batch).of) & set(risk.trained_values) for batch in risk.read(plan)):
        raise DataError(
            f"{risk.where}: the loss does not depend on the parameters it is given: its gradient is zero in all of "
            f"them on the first {sum(map(len, plan)):,} examples; use the model that is passed to the loss, without "
            "torch.no_grad() around the call, or leave out examples that are fitted with zero loss"
        )
    if risk.inherited_values and not set(found.of) & set(risk.inherited_values):
        return (
            "the gradient of the loss is zero in all inherited parameters, so the stage before has no effect on this "
            "stage's training (features computed beforehand? then their effect is missing: let the stage's data be the "
            "inputs, and its model compute the features)"
        )
    return None


def perturbed(risk: Risk) -> Risk:
    """The same losses at parameters perturbed by a hundredth of their size, since a gradient at a minimum is zero."""
    along = direction_of(risk.trained_values)
    return replace(risk, trained_values={name: v + 0.01 * along[name] for name, v in risk.trained_values.items()})


def leaves_of(values: Params) -> Params:
    """Copies that record a gradient."""
    return {name: value.detach().clone().requires_grad_() for name, value in values.items()}


def _refuse_second_model(risk: Risk, names: list[str]) -> None:
    raise DescriptionError(
        f"{risk.where}: the loss reads {some_names(names)} of the original model and not of the model it is passed, so "
        "no derivative can see it: a loss, or a hook in the model, calls another copy (from an enclosing variable). "
        "Use the argument: def losses(model, batch): ... model(...); a constant copy is tensor.detach().clone()"
    )


def _refuse_strangers(risk: Risk, batch: Batch, totals: tuple[Tensor, Tensor], leaves: Params) -> None:
    """Refuse a loss with a gradient in trainable tensors that are none of the stage's parameters.

    totals: the loss, evaluated twice: tensors that a loss creates on each call (to take a gradient in its inputs) are
        its own.
    """
    ours = {id(leaf) for leaf in leaves.values()} | {id(leaf) for leaf in tree_leaves(batch.content)}
    lasting = {id(leaf) for leaf in _trainable(totals[1])}
    for leaf in _trainable(totals[0]):
        if id(leaf) in lasting - ours:
            kind = "parameter" if isinstance(leaf, nn.Parameter) else "tensor"
            raise DescriptionError(
                f"{risk.where}: the loss depends on a trainable {kind} of shape {list(leaf.shape)} that the model does "
                "not have: a second model (another copy of this one?), or weights of the loss itself. If it was "
                "trained here, make it a part of model=; if it was constant, call requires_grad_(False) on it; if the "
                "loss should use the model it is passed, call that one"
            )


def _trainable(total: Tensor) -> Iterator[Tensor]:
    """The leaves that a result depends on and that record a gradient."""
    seen: set[Any] = set()
    left = [total.grad_fn]
    while left:
        node = left.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        leaf = getattr(node, "variable", None)  # of the nodes at which gradients are accumulated
        if isinstance(leaf, Tensor):
            yield leaf
        left.extend(before for before, _ in node.next_functions)


@final
class _Originals(Watch):
    """Records operations on original parameters, while copies have taken their places in the model.

    read: the names of those that an operation used.
    """

    def __init__(self, places: Mapping[int | None, str]) -> None:
        super().__init__()
        self.read: list[str] = []
        self._places = places

    @staticmethod
    def at(risk: Risk, batch: Batch) -> "_Originals":
        """Watches the model's own parameters, except memory shared with constants, buffers or data."""
        model, watched = risk.evaluation.model, {**risk.trained_values, **risk.inherited_values}
        constants = [p for name, p in model.named_parameters() if name not in watched]
        elsewhere = [*constants, *model.buffers(), *tree_leaves(batch.content)]
        innocent = {_memory(tensor) for tensor in elsewhere if isinstance(tensor, Tensor)}
        return _Originals({_memory(value): name for name, value in watched.items() if _memory(value) not in innocent})

    @staticmethod
    def of(stages: Sequence[Stage], besides: Risk) -> "_Originals":
        """Watches what other stages trained, except memory that the model shares with them."""
        ours = {
            _memory(tensor) for tensor in (*besides.evaluation.model.parameters(), *besides.trained_values.values())
        }
        trained = [pair for stage in stages for pair in stage.model.named_parameters() if pair[1].requires_grad]
        return _Originals({_memory(p): name for name, p in trained if _memory(p) not in {None, *ours}})

    def seen(self, operation: Any, arguments: tuple[Any, ...], options: dict[str, Any], results: Any) -> None:
        del operation, results
        for leaf in tree_leaves((arguments, options)):
            if isinstance(leaf, Tensor):
                name = self._places.get(_memory(leaf))
                if name is not None and name not in self.read:
                    self.read.append(name)


def _memory(tensor: Tensor) -> int | None:
    """The address of a tensor's memory; None for sparse tensors and those without memory."""
    if tensor.layout is not torch.strided:
        return None
    try:
        return tensor.untyped_storage().data_ptr() or None
    except (NotImplementedError, RuntimeError):
        return None

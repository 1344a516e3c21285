"""Weights that are put together where a layer uses them, and their derivatives as pieces.

Two linear maps, each the other's transpose where a function's value is a sum over processes:

    whole = gather(piece)       every process has the whole tensor
    piece = scatter(whole)      the sum over processes of each one's whole tensor, of which each keeps its rows

Each is the other's backward and its own tangent, so that second derivatives and forward mode go through both. What a
graph would keep of a whole weight for its backward pass is kept as the piece, and put together again there.

All processes call both in the same order. Before each they ask whether that is so: what one raises, all raise, and a
model that takes another way in each process (experts chosen by the data) is refused by name.
"""

from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.autograd.forward_ad import unpack_dual
from torch.multiprocessing.reductions import StorageWeakRef

from stagetrace.errors import DescriptionError
from stagetrace.parallel import world
from stagetrace.stages.recomputing import kept as activations_kept
from stagetrace.stages.shards.layout import piece_of, put_together

__all__ = ["admitted", "differentiating", "gathering"]

_ADMITTED: ContextVar[bool] = ContextVar("admitted", default=False)
_ALLOWED: ContextVar[bool] = ContextVar("differentiating", default=False)

REFUSED = (
    "the model's parameters lie in shards (DTensor), and only trace(...) and `stagetrace score` differentiate such "
    "models; for all else give the plain module with the full state, torch.distributed.checkpoint.state_dict."
    "get_model_state_dict(model, options=StateDictOptions(full_state_dict=True))"
)

Seen = Callable[[Tensor], None]


@contextmanager
def admitted() -> Generator[None]:
    """Take derivatives of models in pieces: a run of which every sum over entries is known to be one over processes."""
    token = _ADMITTED.set(True)
    try:
        yield
    finally:
        _ADMITTED.reset(token)


@contextmanager
def differentiating(seen: Seen | None = None) -> Generator[None]:
    """Differentiate models in pieces: only loops that sum over processes as they should do so.

    seen: called with each tensor that a graph keeps as it is.

    Raises:
        DescriptionError: the run is not made for them.
    """
    if not _ADMITTED.get():
        raise DescriptionError(REFUSED)

    def kept(tensor: Tensor) -> Tensor | _Again:
        again = _again(tensor)
        if again is None and seen is not None:
            seen(tensor)
        return tensor if again is None else again

    token = _ALLOWED.set(True)
    try:
        # blocks that are computed anew would go through the layers in an order of their own
        with activations_kept(), torch.autograd.graph.saved_tensors_hooks(kept, _taken_out):
            yield
    finally:
        _ALLOWED.reset(token)


@contextmanager
def gathering(
    model: nn.Module, names: Mapping[int, str], values: Mapping[str, Tensor], shapes: Mapping[str, torch.Size]
) -> Generator[None]:
    """While it lasts each parameter that the model's code asks for is put together from its pieces.

    names: of the model's own parameters, by their `id`. values: the pieces, by name. shapes: of the whole, by name.

    Raises:
        DescriptionError: derivatives are wanted, by what does not sum them over processes.
    """
    if not _ALLOWED.get() and any(v.requires_grad or _tangent(v) is not None for v in values.values()):
        raise DescriptionError(REFUSED)
    own = [(module, module._parameters) for module in model.modules()]  # pyright: ignore[reportPrivateUsage]
    try:
        for module, held in own:
            vars(module)["_parameters"] = _Gathering(held, names, values, shapes)
        yield
    finally:
        for module, held in own:
            vars(module)["_parameters"] = held


def _tangent(value: Tensor) -> Tensor | None:
    """The tangent of a dual tensor; None where there is none, or no forward mode at all."""
    try:
        return unpack_dual(value).tangent
    except RuntimeError:  # outside of forward mode
        return None


@final
class _Gathering(dict[str, Any]):
    """A module's parameters, of which one that is asked for is put together."""

    def __init__(
        self,
        own: Mapping[str, Any],
        names: Mapping[int, str],
        values: Mapping[str, Tensor],
        shapes: Mapping[str, torch.Size],
    ) -> None:
        super().__init__(own)
        self._names = {key: names[id(parameter)] for key, parameter in own.items() if parameter is not None}
        self._values, self._shapes = values, shapes

    def __getitem__(self, key: str) -> Any:
        name = self._names.get(key)
        if name is None:
            return super().__getitem__(key)
        return _Gathered.apply(self._values[name], name, self._shapes[name])

    def get(self, key: str, default: Any = None) -> Any:
        return self[key] if key in self else default  # noqa: SIM401  (that is this method)

    def values(self) -> Any:
        return [self[key] for key in self]

    def items(self) -> Any:
        return [(key, self[key]) for key in self]


@final
class _Gathered(torch.autograd.Function):
    """`gather`."""

    @staticmethod
    def forward(ctx: Any, piece: Tensor, name: str, shape: torch.Size) -> Tensor:
        ctx.whole = name, shape  # not `name`, which a node has as a method
        ctx.set_materialize_grads(False)
        return _whole(_Again(piece.detach(), name, shape))

    @staticmethod
    def backward(ctx: Any, whole: Tensor | None) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        return None if whole is None else _Scattered.apply(whole, *ctx.whole), None, None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor | None, *_: Any) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        return None if tangent is None else _Gathered.apply(tangent, *ctx.whole)


@final
class _Scattered(torch.autograd.Function):
    """`scatter`."""

    @staticmethod
    def forward(ctx: Any, whole: Tensor, name: str, shape: torch.Size) -> Tensor:
        ctx.whole = name, shape  # not `name`, which a node has as a method
        ctx.set_materialize_grads(False)
        with world().together(f"adding up gradients of '{name}'"):
            mine = whole.detach().clone(memory_format=torch.contiguous_format)
        return piece_of(world().sum(mine)).clone()

    @staticmethod
    def backward(ctx: Any, piece: Tensor | None) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        return None if piece is None else _Gathered.apply(piece, *ctx.whole), None, None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor | None, *_: Any) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        return None if tangent is None else _Scattered.apply(tangent, *ctx.whole)


@final
@dataclass(frozen=True, eq=False)
class _Again:
    """What puts a whole tensor together again: its piece; of a view also where it lies in the whole's memory."""

    piece: Tensor
    name: str
    shape: torch.Size
    view: tuple[torch.Size, tuple[int, ...], int] | None = None


_alive: dict[int, tuple[StorageWeakRef, _Again]] = {}
"""What each whole tensor was made from, by its memory, while that lives."""


def _whole(again: _Again) -> Tensor:
    with world().together(f"putting '{again.name}' together"):
        pass
    whole = put_together(again.piece, again.shape)
    if world().size == 1:
        return whole.clone()
    if again.piece.layout is torch.strided:
        for address in [each for each, (reference, _) in _alive.items() if reference.expired()]:
            del _alive[address]
        storage = whole.untyped_storage()
        _alive[_address(whole)] = StorageWeakRef(storage), again
    return whole


def _address(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)  # pyright: ignore[reportPrivateUsage, reportAttributeAccessIssue]


def _again(tensor: Tensor) -> _Again | None:
    """How a tensor in the memory of a whole one is made again; None of any other."""
    if tensor.layout is not torch.strided or tensor.device.type == "meta":
        return None
    reference, again = _alive.get(_address(tensor), (None, None))
    if reference is None or again is None or reference.expired() or tensor.dtype != again.piece.dtype:
        return None
    return _Again(again.piece, again.name, again.shape, (tensor.shape, tensor.stride(), int(tensor.storage_offset())))


def _taken_out(kept: Tensor | _Again) -> Tensor:
    if isinstance(kept, Tensor):
        return kept
    assert kept.view is not None
    return _whole(_Again(kept.piece, kept.name, kept.shape)).as_strided(*kept.view)

"""A frozen model beside the one that is trained, with which an objective compares it."""

from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Protocol, final, runtime_checkable

import torch
from torch import Tensor, nn
from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack
from torch.autograd import forward_ad
from torch.utils._python_dispatch import _disable_current_modes  # pyright: ignore[reportPrivateUsage]

REFERENCE = "stagetrace_reference"
"""Under which name a stage's model has the reference as a submodule, so that it can be differentiated in, too."""


@runtime_checkable
class Compares(Protocol):
    """An objective that compares the model with a frozen one, which becomes a submodule of the stage's model."""

    @property
    def reference(self) -> Any:
        """A stage, a module, or None; the words for it once it is a part of the model."""
        ...

    def beside(self, words: str) -> Any:
        """The same objective for a model that has the reference within."""
        ...


def is_of_reference(name: str) -> bool:
    """Whether a parameter of a stage's model is the reference's.

    Example:
        >>> is_of_reference("stagetrace_reference.lm_head.weight"), is_of_reference("lm_head.weight")
        (True, False)
    """
    return name.startswith(f"{REFERENCE}.")


def reference_in(model: nn.Module) -> nn.Module | None:
    """The reference within a stage's model, in eval mode: a replay in training mode is one of the trained model."""
    found = model._modules.get(REFERENCE)  # pyright: ignore[reportPrivateUsage]
    if found is not None and found.training:
        found.eval()
    return found


def is_differentiated(model: nn.Module) -> bool:
    """Whether a derivative in some parameter of the model is being taken."""
    return any(
        parameter.requires_grad or is_wrapped(parameter) or forward_ad.unpack_dual(parameter).tangent is not None
        for parameter in model.parameters()
    )


def is_wrapped(tensor: Tensor) -> bool:
    """Whether a transform of `torch.func` has the tensor in hand: it has no values that could be looked at."""
    return bool(torch._C._functorch.is_functorch_wrapped_tensor(tensor))  # pyright: ignore


@final
class Remembered:
    """What a frozen model gives for examples, computed once for each and outside every derivative.

    By what the examples hold, and for one state of the model at a time. It is no state of the loss: copies of it, and
    what identifies a run, do not have it.
    """

    def __init__(self) -> None:
        self._state: tuple[Any, ...] = ()
        self._held: list[Tensor] = []
        self._found: dict[bytes, list[float]] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {}

    def __setstate__(self, state: dict[str, Any]) -> None:
        del state
        self.__init__()

    def __call__(
        self, model: nn.Module, keys: Callable[[], Sequence[bytes]], compute: Callable[[Sequence[int]], Tensor]
    ) -> Tensor:
        """`[batch, k]`, float64.

        keys: what tells the examples of the batch apart. compute: places in the batch -> `[places, k]`.
        """
        with _aside():
            state = _state_of(model)
            if state != self._state:
                # the tensors are held, so that no others can take their addresses
                self._state, self._held, self._found = state, list(model.parameters()), {}
            known = keys()
            first = {key: place for place, key in reversed(list(enumerate(known)))}
            new = [(key, place) for key, place in first.items() if key not in self._found]
            if new:
                rows = compute([place for _, place in new]).double().tolist()
                self._found.update(zip((key for key, _ in new), rows, strict=True))
        return torch.tensor([self._found[key] for key in known], dtype=torch.float64)


def _state_of(model: nn.Module) -> tuple[Any, ...]:
    """What a model's answers depend on: its parameters' memory, how often it was written to, and mixed precision."""
    mixed = [(kind, torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)) for kind in ("cpu", "cuda")]
    return (*mixed, *((p.data_ptr(), p._version, p.dtype) for p in model.parameters()))


@contextmanager
def _aside() -> Generator[None]:
    """Compute as if no derivative were being taken and nothing were being traced."""
    with ExitStack() as stack:
        stack.enter_context(temporarily_clear_interpreter_stack())
        stack.enter_context(_disable_current_modes())
        stack.enter_context(torch.no_grad())
        yield


def bytes_of(tensors: Iterable[Tensor]) -> bytes:
    """The values of some tensors, their shapes and types included."""
    return b"".join(f"{t.dtype}{list(t.shape)}".encode() + t.cpu().contiguous().numpy().tobytes() for t in tensors)

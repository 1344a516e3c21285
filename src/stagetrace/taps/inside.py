"""Whether a layer's parameters are used inside of the layer only, batch by batch.

What a tap behind a layer sees is what the layer itself does with its parameters. A model may also use them elsewhere,
and do so for some examples only: copy a rare word's vector off the table, send a few rows through a layer once more. So
during a forward pass the parameters require gradients, but not inside of their layers. Then they are on the graph
exactly where no tap sees them, and to ask for their gradients costs nothing where they are not on it.
"""

from collections.abc import Generator, Iterable, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from stagetrace.errors import DifferentiationError

__all__ = ["UnseenError", "constant_inside"]


class UnseenError(DifferentiationError):
    """Taps do not see how these examples' losses depend on a parameter."""


@contextmanager
def constant_inside(held: Iterable[tuple[nn.Module, Iterable[str]]]) -> Generator[None]:
    """While a module runs, the parameters that it holds under these attributes are constants."""
    handles: list[Any] = []
    for module, keys in held:
        enter, leave = _hooks(tuple(keys))
        handles += [
            module.register_forward_pre_hook(enter, prepend=True),
            module.register_forward_hook(leave, always_call=True),
        ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _hooks(keys: tuple[str, ...]) -> tuple[Any, Any]:
    entered: list[Mapping[str, Tensor | None]] = []  # of a module that calls itself, several

    def enter(module: nn.Module, given: object) -> None:
        del given
        own: Any = module._parameters  # pyright: ignore[reportPrivateUsage]
        entered.append({key: own[key] for key in keys})
        own.update({key: own[key].detach() for key in keys})

    def leave(module: nn.Module, given: object, output: object) -> None:
        del given, output
        own: Any = module._parameters  # pyright: ignore[reportPrivateUsage]
        own.update(entered.pop())

    return enter, leave

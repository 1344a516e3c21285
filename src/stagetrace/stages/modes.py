"""Global modes of the caller that would change a derivative, switched off while the library works.

Under `torch.inference_mode` every gradient is silently zero; under `torch.autocast` the loss is another, rounded one;
a default device changes where the library's random numbers lie.
"""

from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, contextmanager
from functools import wraps
from typing import ParamSpec, TypeVar

import torch

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")

AUTOCAST = ("cpu", "cuda", "xpu", "mps")
"""The device types on which PyTorch can lower the precision of operations by itself."""


@contextmanager
def ordinary_modes() -> Generator[None]:
    """Gradients are recorded, no precision is lowered, new tensors lie on the CPU unless a device is named."""
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        for device in AUTOCAST:
            if torch.is_autocast_enabled(device):
                stack.enter_context(torch.autocast(device, enabled=False))
        if torch.get_default_device().type != "cpu":
            stack.enter_context(torch.device("cpu"))
        yield


def in_ordinary_modes(function: Callable[P, R]) -> Callable[P, R]:
    """The function, run under `ordinary_modes` wherever it is called."""

    @wraps(function)
    def inside(*args: P.args, **kwargs: P.kwargs) -> R:
        with ordinary_modes():
            return function(*args, **kwargs)

    return inside


def each_in_ordinary_modes(function: Callable[P, Iterator[T]]) -> Callable[P, Iterator[T]]:
    """The same for a generator: its steps run under `ordinary_modes`, what the caller does between them does not."""

    @wraps(function)
    def inside(*args: P.args, **kwargs: P.kwargs) -> Iterator[T]:
        steps = function(*args, **kwargs)
        while True:
            with ordinary_modes():
                try:
                    item = next(steps)
                except StopIteration:
                    return
            yield item

    return inside

"""Activations that training computed twice to save memory are kept in a replay: the second time comes too late for it.

A replay puts parameters into the model while it is called, and takes them out again. What is computed once more in the
backward pass (gradient checkpointing) would see other ones, and the gradient would be wrong without an error.
"""

from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch.utils.checkpoint as checkpointing
from torch import nn


def without_recomputing(model: nn.Module) -> nn.Module:
    """The same function of the parameters; changes `model`, which must be the library's own."""
    for module in model.modules():
        if getattr(module, "gradient_checkpointing", False) is True:  # how models of transformers remember it
            setattr(module, "gradient_checkpointing", False)  # noqa: B010  (its type says tensor or module)
    return model


@contextmanager
def recomputing_off() -> Generator[None]:
    """Have `torch.utils.checkpoint.checkpoint` call its function, wherever it was imported to."""
    with (
        patch.object(checkpointing, "CheckpointFunction", _Called),
        patch.object(checkpointing, "_checkpoint_without_reentrant_generator", _as_it_is),
    ):
        yield


class _Called:
    """In the place of the function that drops activations."""

    @staticmethod
    def apply(function: Callable[..., Any], preserve: bool, *arguments: Any) -> Any:
        del preserve
        return function(*arguments)


def _as_it_is(*arguments: Any, **named: Any) -> Generator[None]:
    del arguments, named
    yield  # before the forward pass

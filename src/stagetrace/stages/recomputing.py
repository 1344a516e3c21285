"""Activation checkpointing: blocks whose activations are dropped in the forward pass and computed anew going back.

A model is evaluated with other values in the places of its parameters, and these have left again when the backward pass
computes a block anew: it would see the user's own parameters, other kernels and another precision, and a derivative at
any other point would be wrong without an error. So while a model is evaluated, PyTorch's checkpointing is given a
function that puts all of that back first. It is always the kind without reentry, which knows parameters, keyword
arguments and derivatives of derivatives; a block checkpointed with `use_reentrant=True` gives the same numbers by it.

Transformers' blocks drop their activations in training mode only, since dropout would have to be repeated. The
library's copy is in eval mode and has none, so there the blocks of a model with gradient checkpointing on drop theirs
all the same: a block is wrapped, and its mode stays. It is not done where nothing is saved or hooks would see a block
twice: under `kept()`, under `torch.func`, and for a block that is given a cache with something in it.
"""

import sys
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Any

import torch
from torch import nn

__all__ = ["kept", "recompute_blocks", "recomputing_within"]

_PLACES = ("_checkpoint_without_reentrant_generator", "CheckpointFunction")
"""Where `torch.utils.checkpoint` keeps its two kinds; neither is public. Where they are missing, nothing is changed."""

_kept: ContextVar[bool] = ContextVar("activations are kept", default=False)


@contextmanager
def kept() -> Generator[None]:
    """Have activations kept that would be computed anew: for graphs that hold them anyway."""
    before = _kept.set(True)
    try:
        yield
    finally:
        _kept.reset(before)


@contextmanager
def recomputing_within(
    placed: Callable[[], AbstractContextManager[None]], noticed: Callable[[], None]
) -> Generator[None]:
    """While a model is evaluated within `placed()`, have its checkpointed blocks computed anew within it too.

    noticed: called where there is such a block.
    """
    module = sys.modules.get("torch.utils.checkpoint")
    before = [getattr(module, place, None) for place in _PLACES]
    if module is None or None in before:
        yield
        return
    drop: Any = before[0]

    def generator(function: Callable[..., Any], *settings: Any, **named: Any) -> Generator[None]:
        noticed()
        if _keeps():
            return _nothing()

        def again(*arguments: Any, **options: Any) -> Any:
            with placed():
                return function(*arguments, **options)

        return drop(again, *settings, **named)

    for place, ours in zip(_PLACES, (generator, _WithoutReentry), strict=True):
        setattr(module, place, ours)
    try:
        yield
    finally:
        for place, theirs in zip(_PLACES, before, strict=True):
            setattr(module, place, theirs)


def recompute_blocks(model: nn.Module) -> nn.Module:
    """Have the blocks of transformers with gradient checkpointing on drop their activations in eval mode too.

    Changes `model`, which must be the library's own.
    """
    for module in model.modules():
        blocks = any(kind.__name__ == "GradientCheckpointingLayer" for kind in type(module).__mro__)
        if blocks and getattr(module, "gradient_checkpointing", False) is True:
            module.forward = partial(_checkpointed, module.forward)
    return model


def _checkpointed(forward: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
    """A block's forward pass; a cache that it is given is empty, and is left out: filled twice it would be wrong."""
    caches = [given for given in (*arguments, *named.values()) if hasattr(given, "get_seq_length")]
    if any(cache.get_seq_length() for cache in caches) or _keeps() or not torch.is_grad_enabled():
        return forward(*arguments, **named)
    from torch.utils.checkpoint import checkpoint

    without = [None if hasattr(given, "get_seq_length") else given for given in arguments]
    options = {name: None if hasattr(given, "get_seq_length") else given for name, given in named.items()}
    if "use_cache" in options:
        options["use_cache"] = False
    block = partial(forward, **options)
    return checkpoint(block, *without, use_reentrant=False, preserve_rng_state=False)


def _keeps() -> bool:
    return _kept.get() or torch._C._are_functorch_transforms_active()  # pyright: ignore[reportPrivateUsage]


def _nothing() -> Generator[None]:
    yield  # before the forward pass


class _WithoutReentry:
    """In the place of the function with reentry, which has neither a second derivative nor `torch.autograd.grad`."""

    @staticmethod
    def apply(function: Callable[..., Any], preserve: bool, *arguments: Any) -> Any:
        from torch.utils.checkpoint import checkpoint

        return checkpoint(function, *arguments, use_reentrant=False, preserve_rng_state=preserve)

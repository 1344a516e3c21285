"""Kernels that have every derivative we need.

Fused attention, the fused recurrent kernels and the fast path of `nn.TransformerEncoderLayer` have no forward-mode
derivative or no second one; the plain kernels behind the same layers have both. Compiled code has neither, and some
models look into their data to leave a step out (`transformers` skips an attention mask that masks nothing), which a
trace or a batched derivative cannot follow. One context chooses the plain way everywhere while a model is evaluated
for a derivative, and restores what was set.
"""

import sys
import warnings
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from functools import cache

import torch
from torch import nn
from torch.autograd import forward_ad
from torch.nn.attention import SDPBackend, sdpa_kernel


def is_recurrent(model: nn.Module) -> bool:
    """Whether the model has layers with fused recurrent kernels."""
    return any(isinstance(module, nn.RNNBase) for module in model.modules())


def has_fused_recurrence_on_cpu(model: nn.Module) -> bool:
    """Whether one of them is fused on the CPU too: with a projection (`proj_size`) none is."""
    return any(isinstance(module, nn.RNNBase) and not module.proj_size for module in model.modules())


@contextmanager
def differentiable_kernels(*, recurrent: bool, fused_on_cpu: bool) -> Generator[None]:
    """Evaluate with kernels that allow forward mode and double backward.

    The switch for the CPU also covers convolutions, which are slower without it: set it only where needed.
    """
    with ExitStack() as stack:
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        if fused_on_cpu:
            stack.enter_context(_mkldnn_off())
        if recurrent:
            stack.enter_context(warnings.catch_warnings())
            warnings.filterwarnings("ignore", message="LSTM with projections is not supported with oneDNN")
            stack.enter_context(torch.backends.cudnn.flags(enabled=False))
        stack.enter_context(_encoder_fast_path_off())
        stack.enter_context(_as_if_exported())
        if "torch._dynamo" in sys.modules:  # else nothing can have been compiled, and its import takes a second
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        yield


@contextmanager
def _as_if_exported() -> Generator[None]:
    """Have `torch.compiler.is_exporting()` answer yes: the public question whether a model may look into its data.

    Models that ask take the branch that is right for all data; the loss is the same to rounding. The flag behind the
    question has no public setter: where a version of PyTorch lacks it, nothing changes.
    """
    before = getattr(torch.compiler, "_is_exporting_flag", None)
    if before is None:
        yield
        return
    torch.compiler._is_exporting_flag = True  # pyright: ignore[reportPrivateUsage]
    try:
        yield
    finally:
        torch.compiler._is_exporting_flag = before  # pyright: ignore[reportPrivateUsage]


@contextmanager
def _mkldnn_off() -> Generator[None]:
    # not torch.backends.mkldnn.flags: it sets a precision too, and warns that the machine lacks it
    before = torch.backends.mkldnn.enabled
    torch.backends.mkldnn.enabled = False
    try:
        yield
    finally:
        torch.backends.mkldnn.enabled = before


@contextmanager
def _encoder_fast_path_off() -> Generator[None]:
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


@cache
def ready_forward_mode() -> None:
    """Have PyTorch compile its rules for forward mode, as it does at their first use: it warns of how it does that."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="`torch.jit.script` is deprecated")
        with forward_ad.dual_level():
            forward_ad.make_dual(torch.zeros(()), torch.zeros(()))

"""Refusals of wrapped models, with what to give instead."""

import torch
from torch import nn
from torch.jit import ScriptModule
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter

from stagetrace.errors import refuse


def refuse_wrapped(model: nn.Module, where: str) -> None:
    """Refuse modules whose parameters or derivatives cannot be reached.

    A compiled module (`torch.compile`) is accepted: it is evaluated without the compiler.

    Raises:
        DescriptionError: the model is wrapped for several devices, or is (or has) a scripted module; says what to give.
    """
    kind = type(model).__name__
    if kind in ("DataParallel", "DistributedDataParallel"):
        refuse(
            f"{where}: model is wrapped in {kind}; give what is inside, model=wrapped.module "
            "(several processes: start the run by torchrun)"
        )
    for name, module in model.named_modules():
        if type(module).__name__ == "FullyShardedDataParallel":
            refuse(
                f"{where}: the parameters of {_at(name)} lie in flat shards ({type(module).__name__}); wrap the "
                "plain module by torch.distributed.fsdp.fully_shard instead, or load the full state dict into it"
            )
        if isinstance(module, ScriptModule):
            refuse(
                f"{where}: {_at(name)} is a scripted or traced module ({type(module).__name__}), whose "
                "parameters cannot be replaced; give the plain module it was made from, filled by "
                "plain.load_state_dict(scripted.state_dict())"
            )


def refuse_unmade(model: nn.Module, where: str) -> None:
    """Refuse parameters and buffers without values.

    Raises:
        DescriptionError: a layer is lazy still, something lies on the meta device, or a parameter is NaN or infinite.
    """
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if isinstance(tensor, (UninitializedParameter, UninitializedBuffer)):
            refuse(f"{where}: '{name}' of the model has no shape yet (a lazy layer); call the model once on a batch")
        if tensor.device.type == "meta":
            refuse(f"{where}: '{name}' of the model lies on the meta device, without values; load its weights first")
    for name, parameter in model.named_parameters():
        if not parameter.is_floating_point() or parameter.layout is not torch.strided:
            continue
        values = parameter.detach()
        bad = ~values.isfinite() if parameter.requires_grad else values.isnan()  # a constant may mask by -inf
        if bool(bad.any()):
            refuse(
                f"{where}: {int(bad.sum()):,} of {parameter.numel():,} entries of the model's '{name}' are NaN or "
                "infinite (training diverged, or the checkpoint is damaged); load one that evaluates"
            )


def _at(name: str) -> str:
    return f"'{name}'" if name else "the model"

"""What the reference of a `DPOTrainer` was: the stage before, or a model that is held fixed."""

from typing import Any

import torch
from torch import Tensor, nn

from stagetrace.errors import refuse
from stagetrace.hf.admit import unwrapped
from stagetrace.hf.packages import is_adapted, quiet
from stagetrace.hf.trl.own import MIXED
from stagetrace.objectives.dpo import logps_of
from stagetrace.objectives.pairs import REFERENCE_LOGPS, sides_of
from stagetrace.stages.copied import private_copy
from stagetrace.stages.device import to_device
from stagetrace.stages.differentiable_layers import replace_layers
from stagetrace.stages.reference import frozen_copy
from stagetrace.stages.stage import Stage

PROBED = 6
"""Pairs of which log-probabilities are compared."""

SAME = {torch.float64: 1e-9, torch.float32: 1e-4}
"""The relative difference of two log-probabilities that is rounding; `MIXED` where sixteen bits had a part."""


def reference_of(trainer: Any, model: Any, after: Stage | None, where: str) -> Any:
    """The stage before, where its model gives some of the pairs the log-probabilities of the trainer's reference; else
    the trainer's reference as a module, or None where it is known by its log-probabilities in the rows alone.

    model: the one that was trained, adapters included.

    Raises:
        DescriptionError: log-probabilities were to be computed beforehand, and the rows do not have them.
    """
    own = None if trainer.precompute_ref_logps else _module_of(trainer, model, where)
    row = trainer.train_dataset[0]
    if own is None and not all(name in row for name in REFERENCE_LOGPS):
        refuse(
            f"{where}: the trainer used precomputed log-probabilities of its reference, but train_dataset has no "
            f"{' and '.join(map(repr, REFERENCE_LOGPS))}; type DPOConfig(precompute_ref_log_probs=False) and "
            "give the trainer its ref_model="
        )
    if after is None:
        return own
    total = len(trainer.train_dataset)
    rows = [trainer.train_dataset[place * total // PROBED] for place in range(min(PROBED, total))]
    batch = trainer.data_collator(rows)
    theirs = torch.stack([batch[name] for name in REFERENCE_LOGPS], dim=1) if own is None else _of(own, batch, where)
    ours, mixed = _of(after.model, batch, where), getattr(trainer.accelerator, "mixed_precision", "no") != "no"
    single = torch.float32 if own is None else next(after.model.parameters()).dtype  # TRL keeps them in float32
    allowed = MIXED if mixed and own is None else SAME.get(single, MIXED)
    same = bool(((ours - theirs.to(ours)).abs() <= allowed * ours.abs().clamp_min(1)).all())
    return after if same else own


def _module_of(trainer: Any, model: Any, where: str) -> nn.Module:
    """The trainer's reference: its own model, or the trained one with its adapters off, or with those it began with."""
    if trainer.ref_model is not None:
        return frozen_copy(unwrapped(trainer.accelerator.unwrap_model(trainer.ref_model), where))
    if not is_adapted(model):
        refuse(
            f"{where}: the trainer has no reference any more (ref_model is None); give it ref_model=, or train with "
            "precompute_ref_log_probs=True"
        )
    copied: Any = frozen_copy(model)  # adapters are switched by their parameters' requires_grad, too
    if "ref" in copied.peft_config:
        copied.set_adapter("ref")
    else:
        copied.base_model.disable_adapter_layers()
    return copied


def _of(model: nn.Module, batch: Any, where: str) -> Tensor:
    """`[pairs, 2]`: log-probabilities under a model, in eval mode and in the precision of its parameters."""
    evaluated = replace_layers(private_copy(model, where), where)
    first = next(evaluated.parameters())
    with torch.no_grad(), quiet():
        placed: Any = to_device(dict(batch), first.dtype, first.device)
        return logps_of(evaluated, sides_of(placed, "DPO"))

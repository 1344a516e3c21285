"""The loss of a stage, compared with that of the trainer it comes from, on the trainer's own batches."""

import copy
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from stagetrace.errors import refuse
from stagetrace.hf.ownloss import SHARE
from stagetrace.hf.packages import base_of, quiet
from stagetrace.hf.trl.kinds import Kind
from stagetrace.stages.copied import private_copy
from stagetrace.stages.device import to_device
from stagetrace.stages.stage import Stage

MIXED = 5e-2
"""The relative difference of two losses that is rounding, where a part of one was computed in sixteen bits."""

TOGETHER = 8
"""Rows in a batch that is compared, at most; two such batches are, of both ends of the data set."""


def check_trainers_loss(trainer: Any, stage: Stage, kind: Kind, mean: Callable[[Any, Any], Any]) -> None:
    """Refuse a stage whose loss is not that of its trainer.

    mean: the stage's loss of some of its examples, `mean(model, batch)`, weighed as the trainer weighs them in a batch.

    Raises:
        DescriptionError: with both losses.
    """
    model = stage.evaluated
    first = next(model.parameters())
    mixed = getattr(trainer.accelerator, "mixed_precision", "no") != "no"
    allowed = MIXED if mixed else SHARE.get(first.dtype, MIXED)
    with torch.no_grad(), quiet(), _left_as_it_was(trainer):
        heads = with_fused_head(model, kind, stage.where)
        for chosen in _chosen(len(stage.examples), trainer):
            rows = [read_by(trainer, trainer.train_dataset[index]) for index in chosen]
            theirs: Any = to_device(dict(trainer.data_collator(rows)), first.dtype, first.device)
            expected = float(trainer.compute_loss(heads, theirs))
            (read,) = stage.examples.read([chosen])
            ours = float(mean(model, to_device(read.content, first.dtype, first.device)))
            if not abs(ours - expected) <= allowed * max(abs(expected), 1e-3):
                refuse(
                    f"{stage.where}: the {kind} computes another loss than {stage.objective!r}: of the examples "
                    f"{list(chosen)} {expected:.8g}, here {ours:.8g}; give objective=, a function "
                    "losses(model, batch) -> Tensor[batch] that returns this loss for each example"
                )


def _chosen(total: int, trainer: Any) -> list[Sequence[int]]:
    size = max(1, min(total, TOGETHER, int(trainer.args.per_device_train_batch_size)))
    ends: list[Sequence[int]] = [range(size), range(total - size, total)]
    return ends if total > size else ends[:1]


def read_by(trainer: Any, row: Any) -> dict[str, Any]:
    """A row as the trainer's loader gives it to the collator."""
    trainer._set_signature_columns_if_needed()
    kept = trainer._signature_columns if trainer.args.remove_unused_columns else None
    return {name: value for name, value in row.items() if value is not None and (kept is None or name in kept)}


def with_fused_head(model: nn.Module, kind: Kind, where: str) -> nn.Module:
    """A copy of the library's model in which TRL's trainer finds the output layer it patches into models."""
    copied = private_copy(model, where)
    if kind is not Kind.REWARD:
        from trl.trainer import utils  # pyright: ignore[reportMissingTypeStubs]

        patch: Any = getattr(utils, "add_fused_lm_head", None)
        outputs = ("log_probs", "entropy", "mean_logits", "is_top1")
        if patch is not None:  # TRL before 1.16 computed its losses from logits
            patch(base_of(copied), outputs=outputs)
    return copied


@contextmanager
def _left_as_it_was(trainer: Any) -> Generator[None]:
    """A trainer counts what it computes, and may call its own model: both are put back, and nothing is drawn."""
    metrics = copy.deepcopy(trainer._metrics) if hasattr(trainer, "_metrics") else None
    models = [model for model in (trainer.model, getattr(trainer, "ref_model", None)) if isinstance(model, nn.Module)]
    modes = [(module, module.training) for model in models for module in model.modules()]
    learns = [(parameter, parameter.requires_grad) for model in models for parameter in model.parameters()]
    try:
        with torch.random.fork_rng(devices=[]):
            for model in models:
                model.eval()
            yield
    finally:
        for module, training in modes:
            module.training = training
        for parameter, trained in learns:  # adapters are switched off and on by this, too
            parameter.requires_grad_(trained)
        if metrics is not None:
            trainer._metrics = metrics

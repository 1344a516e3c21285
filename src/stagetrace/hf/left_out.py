"""What a Trainer's steps followed beside the loss of its examples; scores leave it out, which is said."""

from dataclasses import replace
from typing import Any

from torch import nn

from stagetrace.hf.sentences import Sentences
from stagetrace.recording import Unrolled
from stagetrace.stages.stage import Stage

__all__ = ["saying_what_is_left_out"]

DROPS = ("attention_dropout", "dropout_prob", "dropout")
"""Attributes of layers that drop units without a module for it."""


def saying_what_is_left_out(stage: Stage, trainer: Any) -> Stage:
    """The stage of a Trainer, which says what of the training is in no loss of its examples.

    Noise on embeddings and examples that no step saw are notices; dropout and the optimiser's weight decay are usual,
    and remarks. Of a recorded training all of it is in the steps.
    """
    if isinstance(stage.link, Unrolled):
        return stage
    notices = (*_noise(trainer, stage.where), *_unseen(trainer, stage))
    remarks = (*_dropout(stage), *_decay(trainer, stage))
    if not notices and not remarks:
        return stage
    read: Sentences = stage.data
    data = Sentences(read.rows, read.reader, (*read.notices, *notices), (*read.remarks, *remarks))
    return replace(stage, data=data)


def _noise(trainer: Any, where: str) -> list[str]:
    alpha = getattr(trainer, "neftune_noise_alpha", None)
    if not alpha:
        return []
    return [
        f"{where}: trained with noise on the embeddings (neftune_noise_alpha={alpha}), so its steps minimised a mean "
        "over that noise; the scores are those of the loss without it"
    ]


def _unseen(trainer: Any, stage: Stage) -> list[str]:
    """That the steps were too few for every example, where there were any."""
    args, total = trainer.args, len(stage.data)
    steps = int(getattr(trainer.state, "global_step", 0))
    each = int(args.train_batch_size) * int(args.gradient_accumulation_steps) * int(args.world_size)
    if not steps or steps * each >= total:
        return []
    return [
        f"{stage.where}: {steps:,} step{'s' if steps > 1 else ''} of {each:,} examples saw at most {steps * each:,} of "
        f"the {total:,}; the scores are those of a stage that learned from all; give the Trainer the part that it was "
        "trained on as its train_dataset, or record the training (Recording.of)"
    ]


def _dropout(stage: Stage) -> list[str]:
    """That units were dropped; nothing of a model in training mode, of which its stage says so."""
    found = set[float]()
    for module in stage.model.modules():
        rates = [module.p] if isinstance(module, nn.modules.dropout._DropoutNd) else []  # pyright: ignore[reportPrivateUsage]
        rates += [rate for name in DROPS if isinstance(rate := getattr(module, name, None), float)]
        if module.training and any(rates) and isinstance(module, nn.modules.dropout._DropoutNd):  # pyright: ignore[reportPrivateUsage]
            return []
        found |= {rate for rate in rates if rate > 0}
    if not found:
        return []
    return [
        f"{stage.where}: trained with dropout ({', '.join(f'{rate:g}' for rate in sorted(found))}), so its steps "
        "minimised a mean over dropped units; the scores are those of the model in eval mode"
    ]


def _decay(trainer: Any, stage: Stage) -> list[str]:
    rate = float(getattr(trainer.args, "weight_decay", 0.0) or 0.0)
    if not rate or stage.weight_decay != 0.0:
        return []
    return [
        f"{stage.where}: the Trainer's weight_decay={rate:g} shrank weights beside the gradient, which is no term of "
        "the loss and not in the scores; weight_decay= adds such a term"
    ]

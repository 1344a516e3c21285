"""What a `transformers.Trainer` minimised: which loss, and how it weighed the tokens of a batch."""

from collections.abc import Callable
from typing import Any

import torch

from stagetrace.errors import refuse
from stagetrace.hf.ownloss import Own
from stagetrace.hf.packages import package
from stagetrace.hf.prompts import check_prompt
from stagetrace.hf.task import Reduction, Task, objective_of
from stagetrace.hf.weights import Smoothed
from stagetrace.objectives import Objective
from stagetrace.objectives.tokens import IGNORED

SMOOTHED = (Task.CLASSIFICATION, Task.CHOICE, Task.TOKENS, Task.MASKED, Task.CAUSAL, Task.SEQ2SEQ)

STEPS = (
    "compute_loss",
    "training_step",
    "get_batch_samples",
    "_get_num_items_in_batch",
    "_inner_training_loop",
    "_run_epoch",
)
"""Methods of a Trainer that decide what it minimises."""

ROWS = (
    "get_train_dataloader",
    "_get_dataloader",
    "_get_train_sampler",
    "_prepare_inputs",
    "_prepare_input",
    "_set_signature_columns_if_needed",
    "_remove_unused_columns",
    "_get_collator_with_removed_columns",
)
"""Methods of a Trainer that decide which examples it learns from, how often, and what the model reads of them."""


def check_home(trainer: Any, where: str) -> None:
    """Refuse a trainer of another package, whose losses and rows are none of a Trainer's.

    Raises:
        DescriptionError: with what to type.
    """
    kind, homes = type(trainer).__name__, {cls.__module__.partition(".")[0] for cls in type(trainer).__mro__}
    if homes & {"lightning", "pytorch_lightning"}:
        refuse(
            f"{where}: trainer is a {kind} of Lightning; type Stage(name, model=module, objective=losses, "
            "data=loader.dataset), where losses(module, batch) -> Tensor[batch] is the loss of each example"
        )
    if "sentence_transformers" in homes:
        refuse(
            f"{where}: {kind} is one of sentence-transformers, whose losses are of a batch or of rows of texts; of "
            "groups of rows that stayed together type Stage(name, model=trainer.model, objective=Contrastive(1 / 20, "
            "embed=...), data=Grouped(rows, groups, collate=...), collate=Grouped.padded), of a CrossEncoder "
            "hf.stage(name, trainer.model.model, rows, objective=...); stagetrace.objectives has all three, and the "
            "page 'Hugging Face models' whole examples"
        )


def check_whole(trainer: Any, where: str) -> None:
    """Refuse a Trainer whose model's parameters lie in pieces.

    Raises:
        DescriptionError: DeepSpeed or FSDP.
    """
    for kind in ("deepspeed", "fsdp"):
        if getattr(trainer, f"is_{kind}_enabled", False):
            refuse(
                f"{where}: the Trainer used {'DeepSpeed' if kind == 'deepspeed' else 'FSDP'}, so the model's "
                "parameters lie in pieces; type: trainer.save_model(folder), and give that folder to "
                "hf.stage(name, folder, data)"
            )


def check_loss(trainer: Any, where: str) -> None:
    """Refuse a Trainer whose loss is not that of the model's class.

    Raises:
        DescriptionError: with what to give.
    """
    kind = type(trainer).__name__
    give = (
        "give objective=, a function losses(model, batch) -> Tensor[batch] that returns this loss for each example; if "
        "it is the loss of the model's class all the same (as where a method only logs), say which: "
        "objective=stagetrace.objectives.NextToken() for a causal language model, Classification() for a classifier; "
        'if it weighs classes, also weights=Weights({class: weight, ...}, sources="label")'
    )
    for step in STEPS:
        if _is_own(trainer, step):
            refuse(f"{where}: {kind} has a {step} of its own; {give}")
    if trainer.compute_loss_func is not None:
        refuse(f"{where}: the Trainer has a compute_loss_func of its own; {give}")
    smoother = trainer.label_smoother
    if smoother is not None and type(smoother).__name__ != "LabelSmoother":
        refuse(f"{where}: the Trainer has a label_smoother of its own ({type(smoother).__name__}); {give}")


def check_rows(trainer: Any, where: str) -> None:
    """Refuse a Trainer that does not read its `train_dataset` as a Trainer of transformers does.

    Raises:
        DescriptionError: with what to type.
    """
    for step in ROWS:
        if _is_own(trainer, step):
            refuse(
                f"{where}: {type(trainer).__name__} has a {step} of its own, so what the model read is not known from "
                "train_dataset and data_collator; type hf.stage(name, trainer.model, rows), where rows are the "
                "examples as the model read them in one epoch, with 'labels' (collate=trainer.data_collator keeps the "
                "collator)"
            )


def _is_own(trainer: Any, name: str) -> bool:
    """Whether a method is not one of transformers: of a user's class, or set on the Trainer itself."""
    if name in vars(trainer):
        return True
    owner = next((cls for cls in type(trainer).__mro__ if name in vars(cls)), None)
    return owner is not None and owner.__module__.split(".")[0] != "transformers"


def loss_of(trainer: Any, task: Task, model: Any, where: str) -> Callable[[Reduction], Objective]:
    """Reduction over an example's tokens -> the loss as the Trainer computed it, its smoothed labels included.

    Raises:
        DescriptionError: smoothed labels for a loss that has no classes; a soft prompt.
    """
    factor = trainer.args.label_smoothing_factor if trainer.label_smoother is not None else 0.0
    if factor and task not in SMOOTHED:
        refuse(
            f"{where}: the Trainer smoothed its labels (label_smoothing_factor={factor}), but a {task} has no classes"
        )

    if task.of_tokens:
        check_prompt(model, where)

    def of(reduction: Reduction) -> Objective:
        return Smoothed(factor, task is Task.CAUSAL, reduction) if factor else objective_of(task, reduction, model)

    return of


def own_loss_of(trainer: Any) -> Own:
    """The Trainer's loss of a batch, at the model it is given."""
    return lambda model, batch: trainer.compute_loss(model, batch)


def examples_averaged(trainer: Any, model: Any, batch: dict[str, Any]) -> int:
    """Over how many examples the Trainer averaged tokens: those of a step, or only of a device's batch.

    A loss that takes `num_items_in_batch` is divided by all labels of a step (of all accumulated batches); one that
    ignores it, by those of its own batch.
    """
    args = trainer.args
    on_device = int(args.train_batch_size)
    if not getattr(trainer, "model_accepts_loss_kwargs", False):
        return on_device
    with torch.no_grad():
        labels = (batch["labels"] != IGNORED).sum()
        one, two = (float(trainer.compute_loss(model, dict(batch), num_items_in_batch=labels * k)) for k in (1, 2))
    taken = abs(one - 2 * two) < 0.1 * abs(one)
    devices = int(args.world_size) if getattr(args, "average_tokens_across_devices", True) else 1
    return on_device * (int(args.gradient_accumulation_steps) * devices if taken else 1)


def groups_by_length(trainer: Any) -> bool:
    """Whether batches were of examples of like length, which makes the average over tokens one over examples."""
    args = trainer.args
    return bool(getattr(args, "group_by_length", False)) or (
        getattr(args, "train_sampling_strategy", "") == "group_by_length"
    )


def check_collator(collator: Any, args: Any, where: str) -> None:
    """Refuse collators that merge several examples into one.

    Raises:
        DescriptionError: packing; with what to type.
    """
    flattening = getattr(package("transformers"), "DataCollatorWithFlattening", ())
    padding_free = bool(getattr(collator, "padding_free", False)) or bool(getattr(args, "padding_free", False))
    if (flattening and isinstance(collator, flattening)) or padding_free:
        refuse(
            f"{where}: {type(collator).__name__} makes one row of all examples of a batch, so no example has a loss of "
            "its own; type hf.stage(name, trainer.model, trainer.train_dataset, reduction='sum'), which reads each "
            "example alone: the loss it had in the row, where the model kept the examples apart"
        )

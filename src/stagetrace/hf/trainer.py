"""A finished `transformers.Trainer` as a stage."""

from typing import Any, Literal

from stagetrace.errors import refuse
from stagetrace.hf.columns import Columns
from stagetrace.hf.describe import collation_of
from stagetrace.hf.labels import Labels
from stagetrace.hf.linking import link_to
from stagetrace.hf.masking import Masking
from stagetrace.hf.packages import base_of, package
from stagetrace.hf.sentences import Given, Reader, Sentences, first_row
from stagetrace.hf.signature import takes
from stagetrace.hf.task import Reduction, Task, objective_of, task_of
from stagetrace.objectives.objective import Objective, PlainLoss
from stagetrace.stages.links import Link
from stagetrace.stages.stage import Stage

LABELS = frozenset({"label", "label_ids", "labels"})
"""What the Trainer keeps of a data set beside what the model's `forward` takes."""


def from_trainer(
    trainer: Any,
    name: str,
    *,
    after: Stage | None = None,
    link: Link | None = None,
    alpha: float | Literal["auto"] = 0.01,
    objective: Objective | PlainLoss | None = None,
    seed: int = 0,
    reduction: Reduction = "mean",
    batch_size: int = 32,
    weight_decay: float = 0.0,
    workers: int = 0,
) -> Stage:
    """The stage that a Trainer trained: its model, its training data, its collator, the loss of the model's class.

    Masks are the exception: `DataCollatorForLanguageModeling(mlm=True)` draws them anew whenever a batch is read, so
    `Masking` of the same probabilities takes its place, and the stage says so.

    Two things are not taken over from the Trainer. Its `weight_decay` shrinks some of the weights beside the gradient
    (decoupled, as AdamW does): it is no term of the loss and has no curvature. `weight_decay=` here is the L2 term of a
    loss that has one. And the Trainer averages the loss of tokens over a batch, a stage over each sentence first;
    `reduction="sum"` weighs all tokens alike.

    Args:
        trainer: after `trainer.train()`.
        name: how results refer to the stage.
        after, link, alpha, batch_size, weight_decay, workers: as for `hf.stage`.
        objective: the loss, where the Trainer's is not that of the model's class.
        seed: of the masks.
        reduction: a sentence's loss is the "mean" or the "sum" over its tokens.

    Raises:
        DescriptionError: a loss of the Trainer's own and no objective; no training data; a collator that draws.
    """
    where = f"stage '{name}'"
    transformers = package("transformers")
    if not isinstance(trainer, transformers.Trainer):
        refuse(f"{where}: trainer must be a transformers.Trainer, got {type(trainer).__name__}")
    if objective is None:
        _check_loss(trainer, transformers, where)
    model = trainer.accelerator.unwrap_model(trainer.model)
    task = task_of(model, objective, where)
    data, collate = _data(trainer, model, task, seed, where)
    trained, found = (model, link) if after is None else link_to(model, after, link, alpha, where)
    return Stage(
        name,
        model=trained,
        objective=objective_of(task, reduction) if objective is None else objective,
        data=data,
        link=found,
        weight_decay=weight_decay,
        batch_size=batch_size,
        collate=collate,
        workers=workers,
    )


def _check_loss(trainer: Any, transformers: Any, where: str) -> None:
    """Refuse a Trainer whose loss is not that of the model's class."""
    own = "give objective=, a function losses(model, batch) -> Tensor[batch] that returns this loss for each example"
    if type(trainer).compute_loss is not transformers.Trainer.compute_loss:
        refuse(f"{where}: {type(trainer).__name__} has a compute_loss of its own; {own}")
    if trainer.compute_loss_func is not None:
        refuse(f"{where}: the Trainer has a compute_loss_func of its own; {own}")
    smoothing = trainer.args.label_smoothing_factor
    if smoothing:
        refuse(f"{where}: the Trainer smoothed its labels (label_smoothing_factor={smoothing}); {own}")


def _data(trainer: Any, model: Any, task: Task, seed: int, where: str) -> tuple[Sentences, Any]:
    """The training examples, read as the Trainer read them, and their collation."""
    rows, collator = trainer.train_dataset, trainer.data_collator
    if rows is None:
        refuse(f"{where}: the Trainer has no train_dataset; give it the data set that it was trained on")
    first_row(rows, where)
    transformers = package("transformers")
    if isinstance(collator, transformers.DataCollatorForLanguageModeling) and collator.mlm:
        if type(collator) is not transformers.DataCollatorForLanguageModeling or _masks_words(collator):
            refuse(
                f"{where}: {type(collator).__name__} draws masks of its own kind each time; mask the data set once, in "
                "a column 'labels', and give hf.stage(..., data=masked)"
            )
        return _masked(rows, collator, model, task, seed, where)
    kept = takes(model) | LABELS if trainer.args.remove_unused_columns else None
    return Sentences(rows, Given(kept, where)), collator


def _masked(rows: Any, collator: Any, model: Any, task: Task, seed: int, where: str) -> tuple[Sentences, Any]:
    shares = {"masked": collator.mask_replace_prob, "random": collator.random_replace_prob}
    masking = Masking(collator.mlm_probability, seed, **shares)
    labels = Labels.of(task, base_of(model).config)
    reader = Reader(task, Columns((), None), labels, collator.tokenizer, takes(model), None, masking, where)
    notice = (
        f"{where}: the Trainer drew masks anew in every epoch; the scores are those of one fixed draw for each "
        f"example, {masking}"
    )
    return Sentences(rows, reader, (notice,)), collation_of(model, collator.tokenizer, task, where)


def _masks_words(collator: Any) -> bool:
    """Whether whole words are masked, which newer versions of the collator can do."""
    return bool(getattr(collator, "whole_word_mask", False))

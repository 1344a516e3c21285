"""A finished `transformers.Trainer` as a stage."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal

from torch import Tensor

from stagetrace.errors import refuse
from stagetrace.hf.admit import admit, unwrapped
from stagetrace.hf.arguments import check_per_token_loss, check_reduction
from stagetrace.hf.checkpoints import last_of
from stagetrace.hf.collate import collation_of
from stagetrace.hf.columns import Columns
from stagetrace.hf.counting import COUNTED, per_token, weights_of
from stagetrace.hf.labels import Labels
from stagetrace.hf.left_out import saying_what_is_left_out
from stagetrace.hf.linking import link_to
from stagetrace.hf.masking import Masking
from stagetrace.hf.ownloss import check_own_loss
from stagetrace.hf.packages import base_of, package
from stagetrace.hf.reader import Given, Reader
from stagetrace.hf.rows import first_row
from stagetrace.hf.sentences import Sentences
from stagetrace.hf.signature import takes
from stagetrace.hf.task import ChosenReduction, Reduction, Task, task_of
from stagetrace.hf.trained import (
    check_collator,
    check_home,
    check_loss,
    check_rows,
    check_whole,
    examples_averaged,
    groups_by_length,
    loss_of,
    own_loss_of,
)
from stagetrace.hf.trl import kind_of, stage_of
from stagetrace.objectives.objective import Objective, PlainLoss
from stagetrace.objectives.weights import Weights
from stagetrace.recording import Unrolled
from stagetrace.replay.checkpoints import Checkpoint
from stagetrace.stages.decay import Decay
from stagetrace.stages.links.link import Link
from stagetrace.stages.own_ids import AskedIds
from stagetrace.stages.precision import Precision
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
    reduction: ChosenReduction = "auto",
    weights: str | Weights | Sequence[float] | Tensor | None = None,
    batch_size: int = 32,
    weight_decay: Decay = 0.0,
    workers: int = 0,
    training: Any = "auto",
    precision: Precision | None = None,
    ids: AskedIds = None,
) -> Stage:
    """The stage that a Trainer trained: its model, its training data, its collator, the loss of the model's class.

    Masks are the exception: `DataCollatorForLanguageModeling(mlm=True)` draws them again whenever a batch is read, so
    `Masking` of the same probabilities takes its place, and the stage says so.

    What is not taken over from the Trainer: its `weight_decay` shrinks some of the weights beside the gradient
    (decoupled, as AdamW does): it is no term of the loss and has no curvature. `weight_decay=` here is the L2 term of a
    loss that has one. And what it drew at random (dropout, noise on embeddings) is left out. The stage says which of
    these there were, and where its steps were too few to see every example.

    A loss of tokens is weighed as the Trainer weighed it: it divides the summed loss of a step by its tokens, so each
    token weighs the same, and an example's loss is the sum over its tokens divided by the data set's mean number.
    With one example in a step, or batches of like lengths, that is each example's own mean. A notice says which.
    Of a recorded training (`link=Unrolled(...)`) the batches are those that were trained on, masks included, and an
    example's loss is the sum over its tokens: what a step divided it by is in the recording.

    The loss is compared with the Trainer's own on a few examples; another one (class weights, the balance of
    experts) is refused until it is given.

    Args:
        trainer: after `trainer.train()`.
        name: how results refer to the stage.
        after, link, alpha, weights, batch_size, weight_decay, workers, precision: as for `hf.stage`.
        ids: as for `hf.stage`, with the columns of `trainer.train_dataset`.
        objective: the loss, where the Trainer's is not that of the model's class.
        seed: of the masks.
        training: as for `Stage`, such as `hf.checkpoints(trainer)`; "auto" is the Trainer's own optimiser and schedule
            where they are known and its model is the one that they left, else None.
        reduction: as for `hf.stage`; "auto" weighs tokens as was trained.

    Raises:
        DescriptionError: a loss of the Trainer's own and no objective; rows that it reads in a way of its own; no
            training data; a collator that draws or packs; a model in pieces; an unknown reduction.
    """
    where = f"stage '{name}'"
    transformers = package("transformers")
    check_home(trainer, where)
    if not isinstance(trainer, transformers.Trainer):
        refuse(f"{where}: trainer must be a transformers.Trainer, got {type(trainer).__name__}")
    check_reduction(reduction, where)
    kind, recorded = kind_of(trainer), isinstance(link, Unrolled)
    settings: dict[str, Any] = {
        "batch_size": batch_size,
        "weight_decay": weight_decay,
        "weights": None if weights is None else weights_of(weights, trainer.train_dataset or [{}], where),
        "workers": workers,
        "precision": precision,
        "training": _left(trainer, recorded) if training == "auto" else training,
        "ids": ids,
    }
    how: dict[str, Any] = {"after": after, "link": link, "alpha": alpha, "objective": objective, "reduction": reduction}
    if kind is None:
        made = _of_transformers(trainer, name, seed=seed, settings=settings, **how)
    else:
        made = stage_of(trainer, kind, name, **how, **settings)
    return saying_what_is_left_out(made, trainer)


def _of_transformers(
    trainer: Any,
    name: str,
    *,
    after: Stage | None,
    link: Link | None,
    alpha: float | Literal["auto"],
    objective: Objective | PlainLoss | None,
    reduction: ChosenReduction,
    seed: int,
    settings: dict[str, Any],
) -> Stage:
    """The stage of a Trainer of transformers, or of a class made from one.

    settings: the rest of `Stage`.
    """
    where, recorded = f"stage '{name}'", isinstance(link, Unrolled)
    check_whole(trainer, where)
    check_rows(trainer, where)
    if objective is None:
        check_loss(trainer, where)
    model = unwrapped(trainer.accelerator.unwrap_model(trainer.model), where)
    admit(model, where)
    task = task_of(model, objective, where)
    data, collate = _data(trainer, model, task, seed, where)
    if recorded:
        data = Sentences(data.rows, data.reader)  # what is said of masks is said of those that are drawn here
    trained, found = (model, link) if after is None else link_to(model, after, link, alpha, where)
    stage = partial(Stage, name, model=trained, link=found, collate=collate, **settings)
    if objective is not None:
        return stage(objective=objective, data=data)
    check_per_token_loss(reduction, task, where)
    loss = loss_of(trainer, task, model, where)
    first = stage(objective=loss("mean"), data=data)
    check_own_loss(first, task, loss("mean"), own_loss_of(trainer), "the Trainer")
    if reduction == "tokens" or (reduction == "auto" and task.of_tokens and not recorded):
        weighed, said = _as_weighed(trainer, first, task, loss, asked=reduction == "tokens")
        return stage(objective=weighed, data=Sentences(data.rows, data.reader, (*data.notices, *said)))
    summed = reduction == "sum" or (reduction == "auto" and recorded)
    return stage(objective=loss("sum" if summed else "mean"), data=data)


def _left(trainer: Any, recorded: bool) -> list[Checkpoint] | None:
    """The Trainer's last checkpoint, where it is known; of a recorded training it is not needed."""
    last = None if recorded else last_of(trainer)
    return None if last is None else [last]


def _as_weighed(
    trainer: Any, stage: Stage, task: Task, loss: Callable[[Reduction], Objective], *, asked: bool
) -> tuple[Objective, tuple[str, ...]]:
    """The loss with tokens weighed as the Trainer weighed them, or alike where that is asked for; and what says so."""
    if asked:
        return per_token(stage, task, loss, 'reduction="tokens"', COUNTED)
    (batch,) = stage.examples.read([range(min(2, len(stage.examples)))])
    together = examples_averaged(trainer, stage.evaluated, batch.content)
    if together == 1 or groups_by_length(trainer):
        why = "one example in a step" if together == 1 else "batches of like lengths"
        said = f"{stage.where}: trained with {why}, every example weighs the same, not every token"
        return loss("mean"), (said,)
    return per_token(stage, task, loss, f"the Trainer's steps of {together} examples", COUNTED)


def _data(trainer: Any, model: Any, task: Task, seed: int, where: str) -> tuple[Sentences, Any]:
    """The training examples, read as the Trainer read them, and their collation."""
    rows, collator = trainer.train_dataset, trainer.data_collator
    if rows is None:
        refuse(f"{where}: the Trainer has no train_dataset; give it the data set that it was trained on")
    first_row(rows, where)
    check_collator(collator, trainer.args, where)
    transformers = package("transformers")
    if isinstance(collator, transformers.DataCollatorForLanguageModeling) and collator.mlm:
        if type(collator) is not transformers.DataCollatorForLanguageModeling or _masks_words(collator):
            refuse(
                f"{where}: {type(collator).__name__} draws masks of its own kind each time; mask the data set once, in "
                "a column 'labels', and give hf.stage(..., data=masked)"
            )
        return _masked(rows, collator, model, task, seed, where)
    kept = takes(model) | LABELS | frozenset(trainer.label_names or ()) if trainer.args.remove_unused_columns else None
    return Sentences(rows, Given(kept, where)), collator


def _masked(rows: Any, collator: Any, model: Any, task: Task, seed: int, where: str) -> tuple[Sentences, Any]:
    shares = {"masked": collator.mask_replace_prob, "random": collator.random_replace_prob}
    masking = Masking(collator.mlm_probability, seed, **shares)
    labels = Labels.of(task, base_of(model).config)
    reader = Reader(task, Columns((), None), labels, collator.tokenizer, takes(model), None, masking, where)
    notice = (
        f"{where}: the Trainer drew new masks in every epoch; the scores are those of one fixed draw for each "
        f"example, {masking}"
    )
    return Sentences(rows, reader, (notice,)), collation_of(model, collator.tokenizer, task, where)


def _masks_words(collator: Any) -> bool:
    """Whether whole words are masked, which newer versions of the collator can do."""
    return bool(getattr(collator, "whole_word_mask", False))

"""The stage that a trainer of TRL trained."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, Literal, cast

from torch import Tensor

from stagetrace.errors import refuse
from stagetrace.hf.admit import admit, unwrapped
from stagetrace.hf.collate import collation_of
from stagetrace.hf.counting import DRAWN, drawn, mean_tokens
from stagetrace.hf.describe import stage as described
from stagetrace.hf.linking import link_to
from stagetrace.hf.modal import Illustrated
from stagetrace.hf.packages import base_of
from stagetrace.hf.packed import check_apart
from stagetrace.hf.pairs import PairCollation, PairReader
from stagetrace.hf.prompts import check_prompt
from stagetrace.hf.reader import Reader
from stagetrace.hf.rows import first_row
from stagetrace.hf.sentences import Sentences
from stagetrace.hf.task import ChosenReduction, Reduction, Task
from stagetrace.hf.trained import check_whole, groups_by_length, loss_of
from stagetrace.hf.trl.kinds import Kind, check_unchanged
from stagetrace.hf.trl.own import check_trainers_loss
from stagetrace.hf.trl.references import reference_of
from stagetrace.hf.trl.rows import Illustrations, Prepared
from stagetrace.hf.trl.settings import check_loss_settings, check_settings, dpo_of, reward_of, sees
from stagetrace.hf.weights import PerToken
from stagetrace.objectives.objective import Objective, PlainLoss
from stagetrace.objectives.pairs import REFERENCE_LOGPS
from stagetrace.objectives.tokens import IGNORED
from stagetrace.recording import Unrolled
from stagetrace.stages.links.link import Link
from stagetrace.stages.stage import Stage

COLUMNS = {
    Kind.DPO: frozenset({"prompt_ids", "chosen_ids", "rejected_ids", *REFERENCE_LOGPS}),
    Kind.REWARD: frozenset({"chosen_ids", "rejected_ids", "margin"}),
}
"""What the trainers of pairs read of their rows."""


def stage_of(
    trainer: Any,
    kind: Kind,
    name: str,
    *,
    after: Stage | None,
    link: Link | None,
    alpha: float | Literal["auto"],
    objective: Objective | PlainLoss | None,
    reduction: ChosenReduction,
    batch_size: int,
    **settings: Any,
) -> Stage:
    """The stage of a trainer of TRL after `train()`; the arguments are those of `hf.from_trainer`.

    settings: the rest of `Stage`.

    Raises:
        DescriptionError: see `hf.from_trainer`; with what to type.
    """
    where = f"stage '{name}'"
    check_whole(trainer, where)
    check_unchanged(trainer, where)
    check_settings(trainer, kind, where)
    if objective is None:
        check_loss_settings(trainer, kind, where)
    if trainer.train_dataset is None:
        refuse(f"{where}: the {kind} has no train_dataset; give it the data set that it was trained on")
    first_row(trainer.train_dataset, where)
    model = unwrapped(trainer.accelerator.unwrap_model(trainer.model), where)
    admit(model, where)
    make = partial(
        _sft if kind is Kind.SFT else _pairs,
        trainer,
        kind,
        name,
        model=model,
        after=after,
        link=link,
        alpha=alpha,
        objective=objective,
        batch_size=batch_size,
    )
    return make(reduction=reduction, settings=settings)


def _sft(
    trainer: Any,
    kind: Kind,
    name: str,
    *,
    model: Any,
    after: Stage | None,
    link: Link | None,
    alpha: float | Literal["auto"],
    objective: Objective | PlainLoss | None,
    batch_size: int,
    reduction: ChosenReduction,
    settings: dict[str, Any],
) -> Stage:
    where, collator = f"stage '{name}'", trainer.data_collator
    own, images = _is_trls(collator, sees(trainer)), sees(trainer)
    apart = own and bool(getattr(collator, "padding_free", False))
    recorded = isinstance(link, Unrolled)
    rows = Illustrations(trainer) if images else Prepared(trainer.train_dataset, apart=apart)
    loss: Callable[[Reduction], Objective] = loss_of(trainer, Task.CAUSAL, model, where)
    stage = partial(
        described,
        name,
        model,
        rows,
        tokenizer=getattr(trainer.processing_class, "tokenizer", trainer.processing_class),
        processor=trainer.processing_class if images else None,
        after=after,
        link=link,
        alpha=alpha,
        collate=None if apart or images else collator,
        batch_size=batch_size,
        **settings,
    )
    if not own and objective is None:
        refuse(
            f"{where}: the SFTTrainer has a data collator of its own ({type(collator).__name__}), whose labels are not "
            "known; type hf.stage(name, trainer.model, rows, collate=trainer.data_collator), rows with 'labels'"
        )
    if objective is not None:
        return _without_special_tokens(stage(objective=objective))
    first = _without_special_tokens(stage(objective=loss("sum")))
    if apart and any("seq_lengths" in rows[place] for place in (0, len(rows) - 1)):
        check_apart(first.evaluated, where)

    def mean(model: Any, batch: Any) -> Tensor:
        labels: Tensor = batch["labels"]
        losses = loss("sum").losses(loss("sum").outputs(model, batch), batch)
        return losses.sum() / (labels[:, 1:] != IGNORED).sum().clamp_min(1)

    check_trainers_loss(trainer, first, kind, mean)
    if reduction in ("mean", "sum") or (reduction == "auto" and recorded):  # a recording has what steps divided by
        return replace(first, objective=loss("mean" if reduction == "mean" else "sum"))
    weighed, notice = _as_weighed(trainer, first, loss, asked=reduction == "tokens")
    read = first.data
    return replace(first, objective=weighed, data=Sentences(rows, read.reader, (*read.notices, notice)))


def _without_special_tokens(stage: Stage) -> Stage:
    """The stage, of whose questions with images the tokenizer adds no tokens of its own, as TRL's collator has it."""
    reader = cast(Sentences, stage.data).reader
    if not isinstance(reader, Reader) or not isinstance(reader.media, Illustrated):
        return stage
    read = replace(reader, media=replace(reader.media, adds=False))
    return replace(stage, data=Sentences(stage.data.rows, read, stage.data.notices, stage.data.remarks))


def _as_weighed(
    trainer: Any, stage: Stage, loss: Callable[[Reduction], Objective], *, asked: bool
) -> tuple[Objective, str]:
    """The loss with tokens weighed as in the trainer's steps, or alike where that is asked for; and what says so."""
    args = trainer.args
    together = int(args.per_device_train_batch_size)
    if getattr(trainer, "model_accepts_loss_kwargs", False):  # a step's loss is divided by the tokens of all its rows
        together *= int(args.gradient_accumulation_steps) * int(args.world_size)
    if not asked and (together == 1 or groups_by_length(trainer)):
        why = "one row in a step" if together == 1 else "batches of like lengths"
        return loss("mean"), f"{stage.where}: trained with {why}, every row weighs the same, not every token"
    some = drawn(len(stage.data), DRAWN) if sees(trainer) else range(len(stage.data))  # whose images are read for it
    labels = [stage.data.rows[index]["labels"] for index in some]
    tokens = mean_tokens(stage, [sum(label != IGNORED for label in each[1:]) for each in labels], some)
    if not tokens:
        refuse(f"{stage.where}: no row has a token to predict (all labels are {IGNORED}); check the labels")
    return PerToken(loss("sum"), tokens), (
        f"{stage.where}: every token weighs the same, as in the trainer's steps of {together} rows: a loss is the sum "
        f"over a row's tokens divided by {tokens:.4g}, the mean number; reduction='mean' weighs every row the same "
        "instead"
    )


def _pairs(
    trainer: Any,
    kind: Kind,
    name: str,
    *,
    model: Any,
    after: Stage | None,
    link: Link | None,
    alpha: float | Literal["auto"],
    objective: Objective | PlainLoss | None,
    batch_size: int,
    reduction: ChosenReduction,
    settings: dict[str, Any],
) -> Stage:
    where, collator = f"stage '{name}'", trainer.data_collator
    if reduction != "auto":
        refuse(f"{where}: reduction= is of losses of tokens, and that of a {kind} is one of pairs; leave it out")
    if not _is_trls(collator, False):
        refuse(
            f"{where}: the {kind} has a data collator of its own ({type(collator).__name__}); type Stage(name, "
            "model=trainer.model, objective=DPO(beta, reference=...), data=rows, collate=trainer.data_collator)"
        )
    if kind is Kind.DPO:
        check_prompt(model, where)
    loss = objective
    if loss is None:
        loss = (
            dpo_of(trainer, reference_of(trainer, model, after, where), where)
            if kind is Kind.DPO
            else reward_of(trainer)
        )
    recorded = isinstance(link, Unrolled)
    reader = PairReader(collator, COLUMNS[kind], trainer.processing_class, where, as_trained=recorded)
    pad = collation_of(base_of(model), trainer.processing_class, Task.CAUSAL, where).pad
    trained, found = (model, link) if after is None else link_to(model, after, link, alpha, where)
    stage = Stage(
        name,
        model=trained,
        objective=loss,
        data=Sentences(trainer.train_dataset, reader),
        link=found,
        collate=collator if recorded else PairCollation(pad),
        batch_size=batch_size,
        **settings,
    )
    if objective is None:
        check_trainers_loss(
            trainer, stage, kind, lambda model, batch: stage.loss.losses(stage.loss.outputs(model, batch), batch).mean()
        )
    return stage


def _is_trls(collator: Any, images: bool) -> bool:
    """Whether a collator is one of TRL's, and not of a class made from one. images: whether it is to read them."""
    return type(collator).__module__.startswith("trl.") and hasattr(collator, "processor") is images

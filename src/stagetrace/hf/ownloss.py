"""The loss that a stage is given, compared with the one that its model computes itself."""

import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from stagetrace.errors import refuse
from stagetrace.hf.packages import base_of, quiet
from stagetrace.hf.task import Task
from stagetrace.hf.weights import Smoothed
from stagetrace.objectives.objective import Objective
from stagetrace.objectives.spans import OWN_LENGTH
from stagetrace.objectives.tokens import IGNORED
from stagetrace.stages.device import to_device
from stagetrace.stages.stage import Stage

ALONE, SAMPLED, TOGETHER = 4, 64, 32
"""Examples that are compared one by one; those among which each label is looked for; those in one compared batch."""

OF_EACH = 2
"""Examples of each label in that batch: weights of classes cancel in an example alone."""

SHARE = {torch.float64: 1e-6, torch.float32: 1e-4}
"""By the model's precision: the relative difference of two losses that is rounding; 5e-2 with sixteen bits."""

Own = Callable[[Any, dict[str, Any]], Any]
"""The model's (or the trainer's) loss of a batch: a number, or None where it has none."""


def counted(batch: Mapping[str, Any], task: Task) -> Tensor:
    """`[batch]`: how many labels of each example are predicted; one each where labels are not of tokens."""
    labels = batch["start_positions" if task is Task.SPAN else "labels"]
    if not task.of_tokens:
        return torch.ones(len(labels), dtype=torch.long, device=labels.device)
    return ((labels[:, 1:] if task is Task.CAUSAL else labels) != IGNORED).sum(dim=1)


def own_loss(model: Any, batch: dict[str, Any]) -> Any:
    """The loss that a model of transformers returns beside its logits."""
    return getattr(model(**batch), "loss", None)


def check_own_loss(stage: Stage, task: Task, objective: Objective, own: Own = own_loss, who: str = "the model") -> None:
    """Refuse a stage whose loss is not its model's own: one with class weights, a term for experts' balance, ...

    Some examples alone, and together a batch that has every label found among some rows of the whole data set, in eval
    mode. Where the model computes no loss, or none for these examples, nothing is compared.

    Args:
        objective: the stage's loss with the mean over an example's tokens.
        own: what to compare with.

    Raises:
        DescriptionError: with both losses.
    """
    _check_balance(stage, objective, who)
    dtype = next(stage.evaluated.parameters()).dtype  # a model that has no plain form is refused here
    alone = _ends(len(stage.examples))
    with torch.no_grad(), quiet():
        # a batch of answers sees its padding, and one of spoken texts is a sum in many configurations
        together = [] if task in (Task.SPAN, Task.SPEECH) else [_of_every_label(stage, task, alone)]
        for chosen in (*([index] for index in alone), *together):
            try:
                found = _both(stage, chosen, task, objective, own)
            except Exception:  # no loss for these labels, or examples that are refused when they are used
                continue
            if found is not None:
                _compare(*found, chosen, dtype, stage, objective, who)


def _check_balance(stage: Stage, objective: Objective, who: str) -> None:
    """Refuse a term for experts' balance by its settings: it may be smaller than what rounding hides."""
    config = base_of(stage.model).config
    weight = getattr(config, "router_aux_loss_coef", None)
    if getattr(config, "output_router_logits", False) and weight and not isinstance(objective, Smoothed):
        refuse(
            f"{stage.where}: {who} computes another loss than {objective!r}: it adds a term for the experts' balance "
            f"(config.output_router_logits = True, config.router_aux_loss_coef = {weight}); give objective=, a "
            "function losses(model, batch) -> Tensor[batch] that returns this loss for each example, or set "
            "model.config.output_router_logits = False if training left the term out"
        )


def _of_every_label(stage: Stage, task: Task, also: Sequence[int]) -> list[int]:
    """Examples from all over the data set, with each label that is found there at least `OF_EACH` times."""
    total = len(stage.examples)
    seen: Counter[Any] = Counter()
    chosen: set[int] = set(also)
    for index in (*also, *random.Random(0).sample(range(total), min(SAMPLED, total))):
        try:
            values = _values(stage.data[index], task)
        except Exception:  # refused when it is used
            continue
        if any(seen[value] < OF_EACH for value in values) and len(chosen) < TOGETHER:
            chosen.add(index)
        if index in chosen:
            seen.update(values)
    return sorted(chosen)


def _values(example: Any, task: Task) -> set[Any]:
    """The labels of an example that a loss may weigh differently; none of a language model or of a regression."""
    labels = example.get("labels", example.get("label", example.get("label_ids")))
    labels = labels.tolist() if hasattr(labels, "tolist") else labels
    match task:
        case Task.CLASSIFICATION | Task.CHOICE:
            return {labels}
        case Task.TOKENS:
            return set(labels) - {IGNORED}
        case Task.MULTI_LABEL:
            return set(enumerate(labels))
        case _:
            return set()


def _both(
    stage: Stage, chosen: Sequence[int], task: Task, objective: Objective, own: Own
) -> tuple[float, float, float] | None:
    """The stage's loss of some examples, the other, and the largest logit; None where there is no other."""
    (read,) = stage.examples.read([chosen])
    model = stage.evaluated
    first = next(model.parameters())
    batch: Any = to_device(read.content, first.dtype, first.device)
    theirs = own(model, {name: value for name, value in batch.items() if name != OWN_LENGTH})
    if not isinstance(theirs, Tensor) or theirs.numel() != 1 or not bool(torch.isfinite(theirs)):
        return None
    counts = counted(batch, task).to(torch.float64)
    outputs: Any = objective.outputs(model, batch)
    losses = objective.losses(outputs, batch).double()
    largest = float(outputs.abs().max()) if isinstance(outputs, Tensor) and outputs.numel() else 1.0
    return float((losses * counts).sum() / counts.sum().clamp_min(1)), float(theirs), largest


def _ends(total: int) -> Sequence[int]:
    """A few examples from both ends of the data set."""
    half = ALONE // 2
    return sorted({*range(min(half, total)), *range(max(0, total - half), total)})


def _compare(
    ours: float,
    theirs: float,
    largest: float,
    chosen: Sequence[int],
    dtype: torch.dtype,
    stage: Stage,
    objective: Objective,
    who: str,
) -> None:
    share = SHARE.get(dtype, 5e-2)
    # transformers rounds the logits of a causal model to float32, whatever their precision
    rounding = 16 * torch.finfo(torch.float32).eps * max(1.0, largest) if dtype in SHARE else share * 1e-2
    if abs(ours - theirs) <= share * max(abs(ours), abs(theirs)) + rounding:
        return
    shown = ", ".join(map(str, chosen[:8])) + (f" and {len(chosen) - 8} more" if len(chosen) > 8 else "")
    some = f"example {chosen[0]}" if len(chosen) == 1 else f"examples {shown}"
    refuse(
        f"{stage.where}: {who} computes another loss than {objective!r}: {theirs:.8g} for {some}, not {ours:.8g} "
        "(class weights, a penalty, a term for experts' balance, a loss_function of its own?); give objective=, "
        "a function losses(model, batch) -> Tensor[batch] that returns this loss for each example"
    )

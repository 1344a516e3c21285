"""The loss that a stage is given, held against the one that its model computes itself."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from stagetrace.errors import refuse
from stagetrace.hf.packages import quiet
from stagetrace.hf.task import Task
from stagetrace.objectives.objective import Objective
from stagetrace.objectives.tokens import IGNORED
from stagetrace.stages.data import place
from stagetrace.stages.stage import Stage

LOOKED_AT = 4
"""Examples whose losses are compared."""

Own = Callable[[Any, dict[str, Any]], Any]
"""The model's (or the trainer's) loss of a batch: a number, or None where it has none."""


def counted(batch: Mapping[str, Any], task: Task) -> Tensor:
    """`[batch]`: how many labels of each example are predicted; one each where labels are not of tokens."""
    labels = batch["labels"]
    if not task.of_tokens:
        return torch.ones(len(labels), dtype=torch.long, device=labels.device)
    return ((labels[:, 1:] if task is Task.CAUSAL else labels) != IGNORED).sum(dim=1)


def own_loss(model: Any, batch: dict[str, Any]) -> Any:
    """The loss that a model of transformers returns beside its logits."""
    return getattr(model(**batch), "loss", None)


def check_own_loss(stage: Stage, task: Task, objective: Objective, own: Own = own_loss, who: str = "the model") -> None:
    """Refuse a stage whose loss is not its model's own: one with class weights, a term for experts' balance, ...

    Some examples alone, and all of these together, in eval mode. Where the model computes no loss, or none for these
    examples, nothing is compared.

    Args:
        objective: the stage's loss with the mean over an example's tokens.
        own: what to compare with.

    Raises:
        DescriptionError: with both losses.
    """
    indices = _ends(len(stage.examples))
    dtype = next(stage.evaluated.parameters()).dtype  # a model that has no plain form is refused here
    with torch.no_grad(), quiet():
        for chosen in (*([index] for index in indices), indices):
            try:
                found = _both(stage, chosen, task, objective, own)
            except Exception:  # no loss for these labels, or examples that are refused when they are used
                return
            if found is not None:
                _compare(*found, chosen, dtype, stage, objective, who)


def _both(
    stage: Stage, chosen: Sequence[int], task: Task, objective: Objective, own: Own
) -> tuple[float, float] | None:
    """The stage's loss of some examples and the other, None where there is no other."""
    (read,) = stage.examples.read([chosen])
    model = stage.evaluated
    first = next(model.parameters())
    batch: Any = place(read.content, first.dtype, first.device)
    theirs = own(model, dict(batch))
    if not isinstance(theirs, Tensor) or theirs.numel() != 1 or not bool(torch.isfinite(theirs)):
        return None
    counts = counted(batch, task).to(torch.float64)
    losses = objective.losses(objective.outputs(model, batch), batch).double()
    return float((losses * counts).sum() / counts.sum().clamp_min(1)), float(theirs)


def _ends(total: int) -> Sequence[int]:
    """A few examples from both ends of the data set."""
    half = LOOKED_AT // 2
    return sorted({*range(min(half, total)), *range(max(0, total - half), total)})


def _compare(
    ours: float, theirs: float, chosen: Sequence[int], dtype: torch.dtype, stage: Stage, objective: Objective, who: str
) -> None:
    share = 1e-3 if dtype in (torch.float32, torch.float64) else 5e-2
    if abs(ours - theirs) <= share * max(abs(ours), abs(theirs)) + share * 1e-2:
        return
    some = f"example {chosen[0]}" if len(chosen) == 1 else f"examples {', '.join(map(str, chosen))}"
    refuse(
        f"{stage.where}: {who} computes another loss than {objective!r}: {theirs:.6g} for {some}, not {ours:.6g} "
        "(class weights, a penalty, a term for experts' balance, a loss_function of its own?); give objective=, "
        "a function losses(model, batch) -> Tensor[batch] that returns this loss for each example"
    )

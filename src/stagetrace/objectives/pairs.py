"""Batches of pairs: a chosen text and a rejected one an example, as two sets of features or as TRL stacks them."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from stagetrace.errors import BatchError
from stagetrace.objectives.batches import in_short
from stagetrace.objectives.forward import call

SIDES = ("chosen", "rejected")

COMPLETION = "completion_mask"
"""1 at the tokens of the completion, 0 at those of the prompt and at padding."""

REFERENCE_LOGPS = ("ref_chosen_logps", "ref_rejected_logps")
"""Log-probabilities under the reference, as TRL precomputes them: `[batch]` each."""

BESIDE = (*REFERENCE_LOGPS, "margin")
"""What is of a pair and no feature of its texts."""

Side = Mapping[str, Tensor]
"""Features of texts, `[rows, length]` each."""


def sides_of(batch: Any, objective: str) -> tuple[Side, ...]:
    """The chosen and the rejected texts; or one set of features, in which the rejected ones stand after the chosen.

    `{chosen_input_ids, chosen_attention_mask, ..., rejected_input_ids, ...}`, each `[batch, length]`, or what TRL's
    collators give: `{input_ids, attention_mask, ...}`, each `[2 batch, length]`.

    Raises:
        BatchError: the batch has neither form.
    """
    if isinstance(batch, Mapping):
        if "input_ids" in batch:
            stacked = {name: value for name, value in batch.items() if name not in BESIDE and isinstance(value, Tensor)}
            if len(stacked["input_ids"]) % 2 == 0:
                return (stacked,)
        elif all(f"{side}_input_ids" in batch for side in SIDES):
            return tuple(_named(batch, side) for side in SIDES)
    raise BatchError(
        f"{objective} needs pairs: chosen_input_ids, chosen_attention_mask, chosen_completion_mask and the same of "
        "'rejected', or input_ids, attention_mask and completion_mask with all rejected texts after all chosen ones, "
        f"as TRL's DataCollatorForPreference gives them (collate=); got {in_short(batch)}"
    )


def _named(batch: Mapping[str, Any], side: str) -> Side:
    start = f"{side}_"
    return {name.removeprefix(start): value for name, value in batch.items() if name.startswith(start)}


def of_both(sides: Sequence[Side], function: Callable[[Side], Tensor]) -> Tensor:
    """`[batch, 2]`: a number of each chosen text, and of each rejected one; stacked texts in one call, as in TRL."""
    found = [function(side) for side in sides]
    chosen, rejected = found if len(found) == 2 else found[0].chunk(2)
    return torch.stack([chosen, rejected], dim=1)


def answered(model: nn.Module, side: Side) -> Tensor:
    """The model's output for texts, without what is not of its input."""
    return call(model, {name: value for name, value in side.items() if name != COMPLETION})


def chosen_rows(sides: Sequence[Side], places: Sequence[int]) -> tuple[Side, ...]:
    """The same of some examples."""
    if len(sides) == 2:
        return tuple({name: value[list(places)] for name, value in side.items()} for side in sides)
    half = len(sides[0]["input_ids"]) // 2
    rows = [*places, *(half + place for place in places)]
    return ({name: value[rows] for name, value in sides[0].items()},)


def single_rows(sides: Sequence[Side]) -> list[list[Tensor]]:
    """What each example holds, without padding: all features of its chosen text, then of its rejected one."""
    found = list[list[Tensor]]()
    for side in sides if len(sides) == 2 else [chosen_rows_of(sides[0], part) for part in (0, 1)]:
        kept = side.get("attention_mask")
        texts = [
            [
                value[row] if kept is None or value.shape != kept.shape else value[row][kept[row] != 0]
                for value in side.values()
            ]
            for row in range(len(side["input_ids"]))
        ]
        found = texts if not found else [one + other for one, other in zip(found, texts, strict=True)]
    return found


def chosen_rows_of(stacked: Side, part: Literal[0, 1]) -> Side:
    """The first half of stacked texts, or the second."""
    return {name: value.chunk(2)[part] for name, value in stacked.items()}

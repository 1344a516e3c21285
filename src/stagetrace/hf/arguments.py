"""Checks of the arguments of `hf.stage`, before anything is loaded."""

from collections.abc import Sequence
from typing import Any

from stagetrace.errors import refuse
from stagetrace.hf.masking import Masking
from stagetrace.hf.task import Task


def check_arguments(
    name: Any, masking: Any, reduction: Any, text: Any, label: Any, max_length: Any, collate: Any, where: str
) -> None:
    """Refuse settings of `hf.stage` that are of another kind.

    Raises:
        DescriptionError: with what to type.
    """
    if not isinstance(name, str):
        refuse(f"hf.stage: the stage's name comes first and must be a string, got {type(name).__name__}")
    if masking is not None and not isinstance(masking, Masking):
        number = isinstance(masking, float) and 0 < masking <= 1
        refuse(f"{where}: masking must be a Masking, got {masking!r}; type Masking({masking if number else 0.15})")
    check_reduction(reduction, where)
    several = isinstance(text, Sequence) and all(isinstance(one, str) for one in text)
    if text is not None and not isinstance(text, str) and not (several and len(text) > 0):
        refuse(f"{where}: text must name a column, or two for pairs of texts, got {text!r}; type text='text'")
    if label is not None and not isinstance(label, str):
        refuse(f"{where}: label must name one column, got {label!r}; type label='label'")
    if max_length is not None and (not isinstance(max_length, int) or isinstance(max_length, bool) or max_length < 1):
        refuse(f"{where}: max_length must be a whole number of tokens above 0, got {max_length!r}; None cuts least")
    if collate is not None and not callable(collate):
        refuse(f"{where}: collate must be a function of a list of examples, got {collate!r}")


def check_reduction(reduction: object, where: str) -> None:
    """Refuse a word for no reduction.

    Raises:
        DescriptionError: with the words there are.
    """
    if reduction not in ("auto", "tokens", "mean", "sum"):
        refuse(f"{where}: reduction must be 'tokens', 'mean', 'sum' or 'auto', got {reduction!r}")


def check_per_token_loss(reduction: object, task: Task, where: str) -> None:
    """Refuse tokens that weigh alike where a loss is not of tokens.

    Raises:
        DescriptionError: says so.
    """
    if task is Task.SPEECH and reduction != "auto":
        refuse(
            f"{where}: reduction={reduction!r} is not read of a loss by CTC, whose config says it "
            "(config.ctc_loss_reduction); leave it out, or give objective=CTC(blank, reduction)"
        )
    if reduction == "tokens" and not task.of_tokens:
        refuse(f"{where}: reduction='tokens' is for losses of tokens, and a {task.value} has one loss; leave it out")

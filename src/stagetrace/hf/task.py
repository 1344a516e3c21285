"""What a model was trained to do, read off its class and configuration."""

from enum import StrEnum
from typing import Any, Literal, final

from stagetrace.errors import refuse
from stagetrace.hf.packages import base_of
from stagetrace.hf.signature import reads_images, takes
from stagetrace.objectives import (
    CTC,
    Classification,
    MaskedToken,
    MultiLabel,
    NextToken,
    Objective,
    Regression,
    Seq2Seq,
    SpanAnswer,
)

Reduction = Literal["mean", "sum"]
"""Over an example's tokens."""

ChosenReduction = Literal["auto", "tokens", "mean", "sum"]
"""What a user may choose: also that every token of the data weighs the same."""


@final
class Task(StrEnum):
    """What an example's labels are."""

    CLASSIFICATION = "classification"
    REGRESSION = "regression"
    MULTI_LABEL = "multi-label"
    TOKENS = "tokens"
    MASKED = "masked"
    CAUSAL = "causal"
    SEQ2SEQ = "sequence to sequence"
    SPAN = "question answering"
    CHOICE = "multiple choice"
    SPEECH = "speech recognition"
    OTHER = "other"

    @property
    def of_tokens(self) -> bool:
        """Whether there is a label per token."""
        return self in (Task.TOKENS, Task.MASKED, Task.CAUSAL, Task.SEQ2SEQ)

    @property
    def writes(self) -> bool:
        """Whether the label is a text, which may be of another length than what is read."""
        return self in (Task.SEQ2SEQ, Task.SPEECH)


HEADS = {
    "ForSequenceClassification": Task.CLASSIFICATION,
    "ForImageClassification": Task.CLASSIFICATION,
    "ForAudioClassification": Task.CLASSIFICATION,
    "ForTokenClassification": Task.TOKENS,
    "ForMaskedLM": Task.MASKED,
    "ForCausalLM": Task.CAUSAL,
    "LMHeadModel": Task.CAUSAL,
    "ForConditionalGeneration": Task.SEQ2SEQ,  # a decoder alone that reads images is causal
    "EncoderDecoderModel": Task.SEQ2SEQ,
    "ForQuestionAnswering": Task.SPAN,
    "ForMultipleChoice": Task.CHOICE,
    "ForCTC": Task.SPEECH,
}
"""How the name of a model's class ends -> its task."""

PROBLEMS = {
    "regression": Task.REGRESSION,
    "single_label_classification": Task.CLASSIFICATION,
    "multi_label_classification": Task.MULTI_LABEL,
}
"""`config.problem_type` -> task."""


def task_of(model: Any, objective: object, where: str) -> Task:
    """The task by the name of the model's class (or of one it inherits from), and by `config.problem_type`.

    Without a `problem_type`, one label is a regression and more are classes, as in transformers.

    Raises:
        DescriptionError: a class without a loss of its own here, and no objective given.
    """
    base = base_of(model)
    found = task_named(type(base))
    if found is Task.SEQ2SEQ and not getattr(base.config, "is_encoder_decoder", False):
        found = Task.CAUSAL if reads_images(model) else None
    if found is None and objective is None:
        if "return_loss" in takes(model):
            refuse(
                f"{where}: the loss of {type(base).__name__} tells each pair of a batch from the others, so that no "
                "pair has a loss of its own; a group of pairs that does not change has one: type Stage(name, "
                "model=model, objective=losses, data=Grouped(rows, size)), as docs/images-and-audio.md shows"
            )
        refuse(
            f"{where}: there is no ready-made loss for {type(base).__name__}; classes that end in {_ends()} "
            "have one; for another give objective=, an objective or a function losses(model, batch) -> Tensor[batch]"
        )
    if found is not Task.CLASSIFICATION:
        return found or Task.OTHER
    if base.config.problem_type is not None:
        bound = base.config.problem_type
        if bound not in PROBLEMS:
            refuse(f"{where}: config.problem_type is {bound!r}; it must be one of {', '.join(map(repr, PROBLEMS))}")
        return PROBLEMS[bound]
    return Task.REGRESSION if base.config.num_labels == 1 else Task.CLASSIFICATION


def _ends() -> str:
    return ", ".join(f"{end} (with an encoder)" if task is Task.SEQ2SEQ else end for end, task in HEADS.items())


def task_of_labels(task: Task, model: Any, objective: object, label: Any) -> Task:
    """The task by the first example's label, where `config.problem_type` leaves it open, as in transformers.

    Several floats are labels that are each 0 or 1. With an objective of the user's own they are numbers, and one class
    of a model without a loss of its own here is checked as a class.
    """
    label = label.tolist() if hasattr(label, "tolist") else label
    several = isinstance(label, (list, tuple)) and bool(label)
    if task is Task.CLASSIFICATION and several and getattr(base_of(model).config, "problem_type", None) is None:
        if objective is not None:
            return Task.REGRESSION
        return Task.MULTI_LABEL if all(isinstance(one, float) for one in label) else task
    classes = task is Task.OTHER and isinstance(objective, Classification) and isinstance(label, (int, str))
    return Task.CLASSIFICATION if classes else task


def task_named(cls: type) -> Task | None:
    """The task by the name of a class, or of one it inherits from; any bound of classification is one."""
    names = [each.__name__ for each in cls.__mro__]
    return next((task for name in names for end, task in HEADS.items() if name.endswith(end)), None)


def objective_of(task: Task, reduction: Reduction, model: Any) -> Objective:
    """The loss of a task; `reduction` is that over a sentence's tokens. model: of which the configuration counts."""
    match task:
        case Task.REGRESSION:
            return Regression()
        case Task.MULTI_LABEL:
            return MultiLabel()
        case Task.TOKENS | Task.MASKED:
            return MaskedToken(reduction)
        case Task.CAUSAL:
            return NextToken(reduction)
        case Task.SEQ2SEQ:
            return Seq2Seq(reduction)
        case Task.SPAN:
            return SpanAnswer()
        case Task.SPEECH:
            config = base_of(model).config
            return CTC(config.pad_token_id, config.ctc_loss_reduction, bool(config.ctc_zero_infinity))
        case _:
            return Classification()

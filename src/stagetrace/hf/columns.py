"""Which columns of a data set hold an example's text and its label."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

from stagetrace.errors import refuse
from stagetrace.hf.task import Task

TOKENISED = "input_ids"

TEXTS: tuple[tuple[str, ...], ...] = (
    ("text",),
    ("sentence",),
    ("content",),
    ("sentence1", "sentence2"),
    ("premise", "hypothesis"),
    ("question1", "question2"),
)
"""Columns taken for the text (or for a pair of texts), where `text=` names none."""

WORDS = (("tokens",), ("words",))
"""The same for token classification, where an example is a list of words."""

LABELS = ("labels", "label")
WORD_LABELS = ("labels", "label", "tags", "ner_tags")

UNLABELLED = (Task.MASKED, Task.CAUSAL)
"""Tasks whose labels are the text itself."""


@final
@dataclass(frozen=True)
class Columns:
    """The columns of an example: its texts (none where it is tokenised already), and its label, if it has one."""

    texts: tuple[str, ...]
    label: str | None

    @property
    def tokenised(self) -> bool:
        return not self.texts


def columns_of(
    found: Sequence[str], task: Task, text: str | Sequence[str] | None, label: str | None, where: str
) -> Columns:
    """The columns as named, else the first known name that the data set has.

    Raises:
        DescriptionError: a named column is missing, none is known, or several could be meant.
    """
    given = () if text is None else (text,) if isinstance(text, str) else tuple(text)
    has = f"; the columns are {', '.join(map(repr, found))}"
    for name in (*given, *(() if label is None else (label,))):
        if name not in found:
            refuse(f"{where}: there is no column '{name}'{has}")
    if len(given) > 2:
        refuse(f"{where}: text= names one column, or two for pairs of texts, got {list(given)}")
    texts = given if given or TOKENISED in found else _texts(found, task, where, has)
    return Columns(texts, label or _label(found, task, where, has))


def _texts(found: Sequence[str], task: Task, where: str, has: str) -> tuple[str, ...]:
    known = WORDS if task is Task.TOKENS else TEXTS
    matches = [names for names in known if set(names) <= set(found)]
    if len(matches) == 1:
        return matches[0]
    kind = "the column with each example's list of words" if task is Task.TOKENS else "the column with the text"
    problem = "several columns could hold the text" if matches else "no column is known to hold the text"
    refuse(f"{where}: {problem}{has}; name {kind} by text=, or tokenise into '{TOKENISED}' yourself")


def _label(found: Sequence[str], task: Task, where: str, has: str) -> str | None:
    names = WORD_LABELS if task is Task.TOKENS else LABELS
    if task in UNLABELLED:  # a label of another kind may stand beside the text, and is not what was predicted
        return "labels" if {TOKENISED, "labels"} <= set(found) else None
    present = [name for name in names if name in found]
    if len(present) == 1:
        return present[0]
    if not present and task is Task.OTHER:
        return None
    problem = "several columns could hold the label" if present else "no column is known to hold the label"
    refuse(f"{where}: {problem}{has}; name it by label=")

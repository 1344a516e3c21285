"""Which columns of a data set hold an example's text; where several could be meant, the choice is the user's."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from stagetrace.errors import refuse
from stagetrace.hf.task import Task

ONE: tuple[tuple[str, ...], ...] = (("text",), ("sentence",), ("content",))
"""Columns that are read as the text, where `text=` names none and no other column could be meant."""

PAIRS: tuple[tuple[str, ...], ...] = (
    ("sentence1", "sentence2"),
    ("premise", "hypothesis"),
    ("question1", "question2"),
    ("question", "sentence"),
    ("question", "passage"),
    ("sentence_A", "sentence_B"),
    ("text1", "text2"),
    ("text_a", "text_b"),
)
"""The same for pairs of texts: GLUE's, and those named in their way."""

COMPLETION = ("prompt", "completion")
"""The same for a causal model: the completion is predicted, the prompt is not."""

WORDS: tuple[tuple[str, ...], ...] = (("tokens",), ("words",))
"""The same for token classification, where an example is a list of words."""

CHATS = ("messages", "conversations", "conversation", "dialog", "dialogue")

BESIDE = frozenset(
    {
        *("id", "idx", "index", "guid", "uid", "uuid", "key", "pairid", "promptid", "hash", "md5", "sha1", "sha256"),
        *(
            "url",
            "uri",
            "link",
            "source",
            "origin",
            "domain",
            "file",
            "filename",
            "file_name",
            "path",
            "author",
            "user",
        ),
        *("lang", "langs", "language", "locale", "genre", "split", "subset", "dataset", "version", "license", "spans"),
        *("date", "time", "timestamp", "meta", "metadata"),
    }
)
"""Columns with the source of a text: ignored, with a notice."""


def texts_of(row: Mapping[str, Any], task: Task, where: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The columns with the text, and those that were ignored.

    Every column of strings counts but labels and what `BESIDE` names. Exactly one known column or one known pair must
    be left.

    Raises:
        DescriptionError: none is known, or several could be meant; with the choices to type.
    """
    _refuse_others(row, where)
    known = _known(task)
    names = {name for columns in known for name in columns}
    held = [name for name, value in row.items() if _is_text(value, task) or (name in names and _is_empty(value))]
    held = [name for name in held if not re.match(r"labels?(_|$)", name, re.IGNORECASE)]
    if task is Task.TOKENS:  # tags may be given by their names
        held = [name for name in held if not re.search(r"(^|_)(tags|labels)$", name, re.IGNORECASE)]
    passed = tuple(name for name in held if name.lower() in BESIDE or re.search(r"(^|_)(ids?|urls?)$", name.lower()))
    left = [name for name in held if name not in passed]
    for columns in known:
        if set(columns) == set(left):
            return columns, passed
    kind = "the column with each example's list of words" if task is Task.TOKENS else "what the model read"
    bound = "several columns could hold the text" if len(left) > 1 else "no column is known to hold the text"
    refuse(
        f"{where}: {bound}{having(row)}; name {kind} by text={_choices(left, task)}, or tokenise into 'input_ids' "
        "yourself"
    )


def having(row: Mapping[str, Any]) -> str:
    """What a message says of a row's columns."""
    return f"; the columns are {', '.join(map(repr, row))}"


def _known(task: Task) -> tuple[tuple[str, ...], ...]:
    if task is Task.TOKENS:
        return WORDS
    return (*ONE, COMPLETION) if task is Task.CAUSAL else (*ONE, *PAIRS)


def _is_text(value: Any, task: Task) -> bool:
    if task is Task.TOKENS:
        return isinstance(value, (list, tuple)) and bool(value) and all(isinstance(one, str) for one in value)
    return isinstance(value, str)


def _is_empty(value: Any) -> bool:
    return value is None or (isinstance(value, (list, tuple)) and not value)


def _choices(left: Sequence[str], task: Task) -> str:
    if not left:
        return ""
    one = " or ".join(f'text="{name}"' for name in left[:3]).removeprefix("text=")
    if len(left) == 1 or task is Task.TOKENS:
        return one
    return f'{one} or text=("{left[0]}", "{left[1]}")'


def _refuse_others(row: Mapping[str, Any], where: str) -> None:
    """Refuse rows of conversations and of preferences, which are no texts yet."""
    if {"chosen", "rejected"} <= set(row):
        refuse(
            f"{where}: rows with 'chosen' and 'rejected' have a loss of two texts, which no model's class has; write "
            'Stage(..., objective=losses, collate=...) with that loss, or text="chosen" for one of the texts'
        )
    lists = [name for name in (*CHATS, *COMPLETION) if name in row and _is_chat(row[name], nested=name in CHATS)]
    if lists:
        refuse(
            f"{where}: column '{lists[0]}' holds a conversation, and its chat template is not applied here; tokenise "
            f"as in training, e.g. tokenizer.apply_chat_template(row['{lists[0]}'], tokenize=True, return_dict=True), "
            "with 'labels' that are -100 where nothing was predicted"
        )


def _is_chat(value: Any, *, nested: bool) -> bool:
    """nested: whether a list of lists counts, too."""
    kinds = (Mapping, list, tuple) if nested else Mapping
    return isinstance(value, (list, tuple)) and bool(value) and isinstance(value[0], kinds)

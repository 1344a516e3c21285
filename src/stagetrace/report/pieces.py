"""An example's tokens in words, one for each position, for the heat map of its scores."""

from collections.abc import Callable, Sequence
from typing import Any, cast

import numpy as np
from torch import Tensor

from stagetrace.objectives.tokens import IGNORED
from stagetrace.report.fields import TARGET, fields_of
from stagetrace.report.preview import whole_characters
from stagetrace.results.tokens import ExampleTokens

__all__ = ["pieces_of"]

LONGEST = 1_024
"""Tokens of an example that are kept in words."""

_IDS = "input_ids"


def pieces_of(data: Any, example: ExampleTokens) -> tuple[str, ...]:
    """The words of an example's tokens by position, the first `LONGEST`; empty where they cannot be told.

    A token that a masked model had to predict is shown as what it was; of a text that is written from another one the
    written one is shown. Without a tokenizer ids stand for words.
    """
    reader = getattr(data, "reader", None)
    task = getattr(getattr(reader, "task", None), "name", "")
    try:
        ids = _ids(data[example.index], written=task == "SEQ2SEQ")
    except Exception:  # an example that cannot be read is previewed as such
        return ()
    if ids is None or any(position >= len(ids) for position in example.positions.tolist()):
        return ()
    if task != "TOKENS":  # of which labels are classes, not tokens
        for position, token in zip(example.positions.tolist(), example.tokens.tolist(), strict=True):
            ids[position] = token
    tokenizer = getattr(data, "tokenizer", None) or getattr(reader, "tokenizer", None)
    decode = getattr(tokenizer, "decode", None)
    try:
        return _words(ids[:LONGEST], decode) if callable(decode) else tuple(f" {token}" for token in ids[:LONGEST])
    except Exception:  # ids of another vocabulary
        return ()


def _ids(item: Any, *, written: bool) -> list[int] | None:
    """The token ids of an item: its `input_ids`, its targets, or all that it is; of a `written` text its labels."""
    fields = fields_of(item)
    found = fields.get("labels") if written else fields.get(_IDS, fields.get(TARGET, fields.get("input")))
    if isinstance(found, tuple | list) and len(cast("Sequence[Any]", found)) == 1:
        found = cast("Sequence[Any]", found)[0]  # of a data set of one tensor
    found = found.tolist() if isinstance(found, Tensor | np.ndarray) else found
    if not isinstance(found, list) or not all(isinstance(each, int) for each in cast("list[Any]", found)):
        return None
    ids = list(cast("list[int]", found))
    while ids and ids[-1] == IGNORED:  # a written text's padding
        ids.pop()
    return ids


def _words(ids: Sequence[int], decode: Callable[[list[int]], Any]) -> tuple[str, ...]:
    """What each token adds to the text of the one before it, so that the pieces join to the text."""
    pieces = list[str]()
    for place, token in enumerate(ids):
        alone = str(decode([token]))
        before = str(decode([ids[place - 1]])) if place else ""
        both = str(decode([ids[place - 1], token])) if place else alone
        pieces.append(both[len(before) :] if both.startswith(before) else alone)
    return tuple(map(whole_characters, pieces))

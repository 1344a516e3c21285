"""Texts, words and tokens of one example, and the labels that follow from them."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from numbers import Integral
from typing import Any

from stagetrace.errors import DataError
from stagetrace.hf.columns import LENGTHS, MASK, POSITIONS, PREDICTED, TOKENISED
from stagetrace.hf.packed import starts_again
from stagetrace.hf.rows import is_sequence
from stagetrace.objectives.tokens import IGNORED

MASKS = (MASK, *PREDICTED)
PER_TOKEN = (TOKENISED, POSITIONS, LENGTHS, *MASKS)
"""Columns of tokenised rows that must be flat lists of numbers."""


def text_of(text: Any, where: str) -> str:
    """A string as it is.

    Raises:
        DataError: no string.
    """
    if not isinstance(text, str):
        raise DataError(f"{where} must be a string, got {type(text).__name__}")
    return text


def words_of(words: Any, where: str) -> list[str]:
    """A list of strings.

    Raises:
        DataError: something else.
    """
    if not isinstance(words, Sequence) or isinstance(words, str):
        raise DataError(f"{where} must be a list of words, got {type(words).__name__}")
    wrong = next((word for word in words if not isinstance(word, str)), None)
    if wrong is not None:
        raise DataError(f"{where} must be a list of words, got one with {wrong!r} in it")
    return list(words)


def check_tokens(features: Mapping[str, Any], size: int | None, where: str) -> None:
    """Refuse tokens that the model has not, and features of tokens that are of another length.

    Raises:
        DataError: see above; `where` names the example.
    """
    tokens = features[TOKENISED]
    count = len(tokens)
    for name in (MASK, POSITIONS, "token_type_ids"):
        if name in features and len(features[name]) != count:
            raise DataError(f"{where} has {len(features[name])} entries in '{name}' for {count} tokens")
    if not count or len(getattr(tokens, "shape", ())) > 1 or isinstance(tokens[0], Sequence):
        return  # a choice of several texts, each with tokens of its own
    lowest, highest = int(min(tokens)), int(max(tokens))
    if lowest < 0 or (size is not None and highest >= size):
        raise DataError(
            f"{where} has the token {lowest if lowest < 0 else highest}, the model's vocabulary is 0 to "
            f"{'...' if size is None else size - 1}; tokenise by the tokenizer that the model was trained with"
        )


def check_per_token(row: Mapping[str, Any], where: str) -> None:
    """Refuse features of one sentence that are not flat lists of whole numbers.

    Raises:
        DataError: a string, a number, lists in a list, a tensor of two axes; `where` names the example.
    """
    for name in PER_TOKEN:
        value: Any = row.get(name)
        if value is None:
            continue
        shape = getattr(value, "shape", None)
        flat = is_sequence(value) and (shape is None or len(shape) == 1)
        listed: Any = getattr(value, "tolist", None)
        entries: Any = value if listed is None else listed()
        kinds = (int, float, Integral) if name in MASKS else (int, Integral)
        if flat and all(isinstance(one, kinds) or getattr(one, "shape", None) == () for one in entries):
            continue
        kind = f"of shape {list(shape)}" if shape is not None and len(shape) != 1 else repr(value)[:60]
        nested = (
            " (one row for each sentence; tokenizers add an axis with return_tensors=)" if is_sequence(value) else ""
        )
        raise DataError(f"{where}: '{name}' must be a list with a whole number per token, got {kind}{nested}")


def next_tokens(features: Mapping[str, Any]) -> list[int]:
    """Each token as a label, except what has nothing to be predicted from: padding, what follows it, and the first
    token of each packed document.
    """
    tokens = features[TOKENISED]
    kept = [bool(one) for one in features.get(MASK, [1] * len(tokens))]
    pairs = zip(tokens, kept, [True, *kept], strict=False)
    labels = [int(token) if here and before else IGNORED for token, here, before in pairs]
    if MASK in features or POSITIONS not in features or not starts_again(features[POSITIONS]):
        return labels
    positions = [int(position) for position in features[POSITIONS]]
    follows = [False, *(after == before + 1 for before, after in pairwise(positions))]
    return [label if seen else IGNORED for label, seen in zip(labels, follows, strict=True)]


def completion_labels(encoded: Mapping[str, Any], prompt: str, where: str) -> list[int]:
    """-100 up to the token with which the completion begins, from there on each token.

    Raises:
        DataError: a token that is partly the prompt's.
    """
    begins: int | None = None
    for position, (start, end) in enumerate(encoded["offset_mapping"]):
        if end <= start:  # a special token
            continue
        if start < len(prompt) < end and prompt[start:].strip():
            raise DataError(
                f"{where}: one token holds the end of the prompt and the beginning of the completion "
                f"({prompt[-12:]!r}); begin the completion with a blank, or tokenise yourself into '{TOKENISED}' and "
                "'labels'"
            )
        if end > len(prompt):
            begins = position
            break
    tokens = [int(token) for token in encoded[TOKENISED]]
    begins = len(tokens) if begins is None else begins
    return [IGNORED if position < begins else token for position, token in enumerate(tokens)]


def first_of_each(word_ids: Sequence[int | None], labels: Sequence[int]) -> list[int]:
    """Per token: the label of its word on the first token of the word, -100 on the others and on special tokens."""
    seen: set[int | None] = {None}
    found: list[int] = []
    for word in word_ids:
        found.append(IGNORED if word is None or word in seen else labels[word])
        seen.add(word)
    return found

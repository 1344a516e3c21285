"""A data set of texts, read as the features that a stage's model takes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, final

from stagetrace.errors import DataError, refuse
from stagetrace.hf.columns import TOKENISED, Columns
from stagetrace.hf.labels import Labels
from stagetrace.hf.masking import Masking
from stagetrace.hf.task import Task
from stagetrace.objectives.tokens import IGNORED

Features = dict[str, Any]
"""One example: `input_ids`, `attention_mask`, what else the model takes, and `labels`."""


@final
@dataclass(frozen=True, eq=False)
class Reader:
    """How an example becomes features: a function of the example and its index, without a state of its own.

    tokenizer: None where examples are tokenised already.
    takes: what the model's `forward` takes by name; a tokenizer's other features are left out.
    max_length: tokens after which a text is cut.

    Raises:
        DataError: an example lacks a column, or its text or label is of the wrong kind; with its index.
    """

    task: Task
    columns: Columns
    labels: Labels
    tokenizer: Any
    takes: frozenset[str]
    max_length: int | None
    masking: Masking
    where: str

    def __call__(self, row: Mapping[str, Any], index: int) -> Features:
        """The features of example `index`."""
        for name in (*self.columns.texts, self.columns.label):
            if name is not None and name not in row:
                raise DataError(f"{self.where}: example {index} has no column '{name}'; it has {list(row)}")
        whole = dict(row) if self.columns.tokenised else self._tokenised(row, index)
        features: Features = {name: whole[name] for name in whole if name in self.takes and name != "labels"}
        if TOKENISED not in features:
            raise DataError(f"{self.where}: example {index} has no '{TOKENISED}'; it has {list(row)}")
        features.setdefault("attention_mask", [1] * len(features[TOKENISED]))
        if self.task is Task.CAUSAL and self.columns.label is None:
            features["labels"] = _next_tokens(features)
        elif self.task is Task.MASKED and self.columns.label is None:
            self._mask(features, whole.get("special_tokens_mask"), index)
        elif self.columns.label is not None:
            features["labels"] = self._label(row, whole, features, index)
        return features

    def _tokenised(self, row: Mapping[str, Any], index: int) -> Features:
        texts = [row[name] for name in self.columns.texts]
        words = self.task is Task.TOKENS
        for name, text in zip(self.columns.texts, texts, strict=True):
            if not isinstance(text, Sequence if words else str) or (words and isinstance(text, str)):
                wanted = "a list of words" if words else "a string"
                got = type(text).__name__
                raise DataError(f"{self.where}: '{name}' of example {index} must be {wanted}, got {got}")
        if words:
            texts = [list(text) for text in texts]
        cut = {"truncation": True, "max_length": self.max_length} if self.max_length else {}
        encoded = self.tokenizer(*texts, is_split_into_words=words, **cut)
        whole = dict(encoded)
        if words:
            whole["word_ids"] = encoded.word_ids()
        return whole

    def _label(self, row: Mapping[str, Any], whole: Features, features: Features, index: int) -> Any:
        where, label = f"{self.where}: '{self.columns.label}' of example {index}", row[self.columns.label or ""]
        label = label.tolist() if hasattr(label, "tolist") else label
        if self.task is Task.TOKENS and not self.columns.tokenised:
            words = row[self.columns.texts[0]]
            if len(label) != len(words):
                raise DataError(f"{where} has {len(label)} labels for {len(words)} words")
            return _first_of_each(whole["word_ids"], [self.labels.read(one, where) for one in label])
        if not self.task.of_tokens:
            return self.labels.read(label, where)
        label = [one if one == IGNORED else self.labels.read(one, where) for one in label]
        if len(label) != len(features[TOKENISED]):
            raise DataError(f"{where} has {len(label)} labels for {len(features[TOKENISED])} tokens")
        return label

    def _mask(self, features: Features, special: Sequence[int] | None, index: int) -> None:
        tokens = [int(token) for token in features[TOKENISED]]
        of_special: Sequence[int] = (
            self.tokenizer.get_special_tokens_mask(tokens, already_has_special_tokens=True)
            if special is None
            else special
        )
        fixed = [bool(one) or not kept for one, kept in zip(of_special, features["attention_mask"], strict=True)]
        mask, size = self.tokenizer.mask_token_id, len(self.tokenizer)
        features[TOKENISED], features["labels"] = self.masking.apply(tokens, fixed, index, mask=mask, size=size)


@final
@dataclass(frozen=True, eq=False)
class Given:
    """Reads an example as it stands, less the columns in which the model takes no interest.

    columns: those that are kept; None keeps all.
    """

    columns: frozenset[str] | None
    where: str

    def __call__(self, row: Mapping[str, Any], index: int) -> Features:
        """The features of example `index`."""
        del index
        return {name: row[name] for name in row if self.columns is None or name in self.columns}


@final
class Sentences:
    """A map-style data set whose items are the features of another's, made when they are read.

    Args:
        rows: the data set as it was given; an example's id is its index there.
        reader: how a row is read.
        notices: what was decided for the user and should be known.
    """

    def __init__(self, rows: Any, reader: Reader | Given, notices: tuple[str, ...] = ()) -> None:
        self.rows, self.reader, self.notices = rows, reader, notices

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Features:
        index = range(len(self))[index]
        return self.reader(self.rows[index], index)

    def of(self, rows: Any, where: str) -> "Sentences":
        """Other rows, read in the same way.

        Raises:
            DescriptionError, DataError: as for `first_row`.
        """
        first_row(rows, where)
        return Sentences(rows, replace(self.reader, where=where))


def first_row(rows: Any, where: str) -> Mapping[str, Any]:
    """The first row of a data set of rows with named columns.

    Raises:
        DescriptionError: a dict of splits, a stream, or rows without names.
        DataError: the data set is empty.
    """
    if isinstance(rows, Mapping):
        some = ", ".join(map(repr, list(rows)[:4]))
        refuse(f"{where}: data is a dict of {some}; pass one split of it, e.g. data[{next(iter(rows), 'train')!r}]")
    if not (hasattr(type(rows), "__len__") and hasattr(type(rows), "__getitem__")):
        refuse(f"{where}: data must be a data set with a length and indices, got {type(rows).__name__}")
    if len(rows) == 0:
        raise DataError(f"{where}: the data set is empty; it needs at least one example")
    row = rows[0]
    if not isinstance(row, Mapping):
        refuse(
            f"{where}: the examples of data must be dicts with named columns, got {type(row).__name__}; for texts "
            "alone write [{'text': text} for text in texts]"
        )
    return row


def _next_tokens(features: Features) -> list[int]:
    """Each token as a label, except padding and what follows it: that token has nothing to be predicted from."""
    kept = [bool(one) for one in features["attention_mask"]]
    pairs = zip(features[TOKENISED], kept, [True, *kept], strict=False)
    return [int(token) if here and before else IGNORED for token, here, before in pairs]


def _first_of_each(word_ids: Sequence[int | None], labels: Sequence[int]) -> list[int]:
    """Per token: the label of its word on the first token of the word, -100 on the others and on special tokens."""
    seen: set[int | None] = {None}
    found: list[int] = []
    for word in word_ids:
        found.append(IGNORED if word is None or word in seen else labels[word])
        seen.add(word)
    return found

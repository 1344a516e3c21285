"""A row of a data set -> the features that a stage's model takes."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

from stagetrace.errors import DataError
from stagetrace.hf.columns import (
    EMBEDDED,
    LABELS,
    LENGTHS,
    MASK,
    POSITIONS,
    PREDICTED,
    TOKENISED,
    UNLABELLED,
    WORD_LABELS,
    Columns,
)
from stagetrace.hf.labels import Labels
from stagetrace.hf.masking import Masking
from stagetrace.hf.modal import Illustrated, Media, of_images
from stagetrace.hf.packed import positions_of
from stagetrace.hf.rows import is_sequence, present
from stagetrace.hf.task import Task
from stagetrace.hf.tokens import (
    check_per_token,
    check_tokens,
    completion_labels,
    first_of_each,
    next_tokens,
    text_of,
    words_of,
)
from stagetrace.objectives.spans import OWN_LENGTH
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
    packed: rows come with positions and without a mask, and get none.
    expected: the columns that count, as the first row has them; None does not compare.
    asks: an example must predict something (those of a query must).
    size: the model's vocabulary, where it is known.
    media: makes features of an example's image or sound; None where it has features already.
    begins: a token that targets do not begin with, since the decoder begins with it in any case.

    Raises:
        DataError: an example lacks a column, or has one more than the first, or its text or label is of the wrong
            kind; with its index.
    """

    task: Task
    columns: Columns
    labels: Labels
    tokenizer: Any
    takes: frozenset[str]
    max_length: int | None
    masking: Masking
    where: str
    packed: bool = False
    expected: frozenset[str] | None = None
    asks: bool = False
    size: int | None = None
    media: Media | None = None
    begins: int | None = None

    def several(self, rows: Sequence[Mapping[str, Any]], indices: Sequence[int]) -> list[Features]:
        """The features of some examples, each as by itself; where they have one text each, tokenised in one call."""
        if self.columns.tokenised or self.columns.completes or len(self.columns.texts) > 1 or self.task is Task.TOKENS:
            return [self(row, index) for row, index in zip(rows, indices, strict=True)]
        for row, index in zip(rows, indices, strict=True):
            self._check(row, index)
        name = next(iter(self.columns.texts))
        where = f"{self.where}: '{name}' of example "
        texts = [text_of(row[name], f"{where}{index}") for row, index in zip(rows, indices, strict=True)]
        encoded = self.tokenizer(texts, **self._cut)
        each = [{key: encoded[key][place] for key in encoded} for place in range(len(texts))]
        return [self._features(*one) for one in zip(rows, each, indices, strict=True)]

    def __call__(self, row: Mapping[str, Any], index: int) -> Features:
        """The features of example `index`."""
        row = row if self.media is None else self.media(row, index, self.where)
        self._check(row, index)
        if self.columns.tokenised and self.task.of_tokens:
            check_per_token(row, f"{self.where}: example {index}")
        return self._features(row, dict(row) if self.columns.tokenised else self._tokenised(row, index), index)

    def _features(self, row: Mapping[str, Any], whole: Features, index: int) -> Features:
        """whole: all features that there are, also those that the model does not take."""
        features: Features = {
            name: value
            for name, value in whole.items()
            if name in self.takes and name != "labels" and value is not None
        }
        if LENGTHS in whole and POSITIONS not in features and self.packed:
            features[POSITIONS] = positions_of(whole[LENGTHS])
        main = self.columns.main
        if main not in features and EMBEDDED not in features:
            raise DataError(f"{self.where}: example {index} has no '{main}'; it has {list(row)}")
        tokens = features.get(TOKENISED)
        if is_sequence(tokens):
            check_tokens(features, self.size, f"{self.where}: example {index}")
            if MASK not in features and not self.packed and (MASK in self.takes or self.task.of_tokens):
                features[MASK] = [[1] * len(one) if is_sequence(one) else 1 for one in tokens]
        if self.task is Task.SPAN:
            features[OWN_LENGTH] = len(features.get(TOKENISED, features.get(EMBEDDED, ())))
        if self.task is Task.MASKED and self.columns.label is None:
            self._mask(features, whole.get("special_tokens_mask"), index)
        else:
            labels = self._labels(row, whole, features, index)
            if labels is not None:
                features["labels"] = labels
        return self._with_a_token(features, index)

    def relevant(self, row: Mapping[str, Any]) -> frozenset[str]:
        """The columns of a row, its first, that change what is read."""
        return self._relevant(row if self.media is None else self.media(row, 0, self.where))

    def _relevant(self, row: Mapping[str, Any]) -> frozenset[str]:
        names = self.takes | {LENGTHS, *PREDICTED, *LABELS} if self.columns.tokenised else frozenset(LABELS)
        if self.task is Task.TOKENS:
            names |= set(WORD_LABELS)
        found = [name for name in present(row) if name in names]
        if self.task in UNLABELLED:  # a label of another kind is not read
            found = [name for name in found if name not in LABELS or is_sequence(row[name])]
        label = self.columns.label
        if label is not None and label in row and not self.task.of_tokens:
            found.append(label)  # also where it is None, of which the reading says more
        if isinstance(self.media, Illustrated):  # an example may have no image, and no place for one
            found = [name for name in found if not of_images(name)]
        return frozenset(found)

    def _check(self, row: Mapping[str, Any], index: int) -> None:
        where = f"{self.where}: example {index}"
        if not isinstance(row, Mapping):
            raise DataError(f"{where} must be a dict with named columns, got {type(row).__name__}")
        for name in (*self.columns.texts, self.columns.label, *self.columns.predicted):
            if name is not None and name not in row:
                raise DataError(f"{where} has no column '{name}'; it has {list(row)}")
        if self.expected is None:
            return
        found = self._relevant(row)
        if found != self.expected:
            lacks, more = sorted(self.expected - found), sorted(found - self.expected)
            what = " and ".join(
                f"{verb} {', '.join(map(repr, names))}" for verb, names in (("lacks", lacks), ("has", more)) if names
            )
            raise DataError(f"{where} {what}, unlike example 0; all rows must have the same columns")

    @property
    def _cut(self) -> dict[str, Any]:
        """What a tokenizer is told of the most tokens."""
        return {"truncation": True, "max_length": self.max_length} if self.max_length else {}

    def _tokenised(self, row: Mapping[str, Any], index: int) -> Features:
        where = f"{self.where}: '{{}}' of example {index}"
        words = self.task is Task.TOKENS
        read = words_of if words else text_of
        texts: list[Any] = [read(row[name], where.format(name)) for name in self.columns.texts]
        cut = self._cut
        if self.columns.completes:
            encoded = self.tokenizer("".join(texts), return_offsets_mapping=True, **cut)
            labels = completion_labels(encoded, texts[0], f"{self.where}: example {index}")
            if texts[1].strip() and self.max_length and len(labels) >= self.max_length and set(labels) == {IGNORED}:
                raise DataError(
                    f"{self.where}: example {index}: nothing of the completion is left, as texts are cut after "
                    f"{self.max_length:,} tokens; shorten the prompt, leave the example out, or raise max_length="
                )
            return {**encoded, "labels": labels}
        encoded = self.tokenizer(*texts, is_split_into_words=words, **cut)
        return {**encoded, "word_ids": encoded.word_ids()} if words else dict(encoded)

    def _labels(self, row: Mapping[str, Any], whole: Features, features: Features, index: int) -> Any:
        """The labels of an example; None where it has none."""
        if self.columns.label is not None:
            labels = self._label(row, whole, features, index)
        elif self.task is not Task.CAUSAL:
            return None
        elif self.columns.completes:
            labels = whole["labels"]
        else:
            labels = next_tokens(features)
        for name in self.columns.predicted:
            if len(row[name]) != len(labels):
                where = f"{self.where}: '{name}' of example {index}"
                raise DataError(f"{where} has {len(row[name])} entries for {len(labels)} tokens")
            labels = [label if counts else IGNORED for label, counts in zip(labels, row[name], strict=True)]
        return labels

    def _label(self, row: Mapping[str, Any], whole: Features, features: Features, index: int) -> Any:
        where, label = f"{self.where}: '{self.columns.label}' of example {index}", row[self.columns.label or ""]
        label = label.tolist() if hasattr(label, "tolist") else label
        if label is None and self.task.writes:
            raise DataError(f"{where} is None; leave the example out")
        if not (self.task.of_tokens or self.task.writes):
            return self.labels.read(label, where)
        if self.task.writes and isinstance(label, str):
            label = self._target(label, where)
        if not is_sequence(label):
            raise DataError(f"{where} must be a list with a label per token, got {label!r}")
        if self.task is Task.TOKENS and not self.columns.tokenised:
            words = row[self.columns.texts[0]]
            if len(label) != len(words):
                raise DataError(f"{where} has {len(label)} labels for {len(words)} words")
            return first_of_each(whole["word_ids"], [self._one(one, where) for one in label])
        label = [self._one(one, where) for one in label]
        tokens = features.get(TOKENISED, features.get(EMBEDDED, ()))
        if len(label) != len(tokens) and not self.task.writes:
            raise DataError(f"{where} has {len(label)} labels for {len(tokens)} tokens")
        return label

    def _target(self, text: str, where: str) -> list[int]:
        """The tokens of a target text."""
        if self.tokenizer is None:
            raise DataError(f"{where} is a text, and there is no tokenizer; give tokenizer=, or the target's tokens")
        tokens = list(self.tokenizer(text_target=text, **self._cut)[TOKENISED])
        return tokens[1:] if self.begins is not None and tokens[:1] == [self.begins] else tokens

    def _one(self, label: Any, where: str) -> Any:
        return IGNORED if isinstance(label, (int, float)) and label == IGNORED else self.labels.read(label, where)

    def _mask(self, features: Features, special: Sequence[int] | None, index: int) -> None:
        tokens = [int(token) for token in features[TOKENISED]]
        of_special: Sequence[int] = (
            self.tokenizer.get_special_tokens_mask(tokens, already_has_special_tokens=True)
            if special is None
            else special
        )
        fixed = [bool(one) or not kept for one, kept in zip(of_special, features[MASK], strict=True)]
        mask, size = self.tokenizer.mask_token_id, len(self.tokenizer)
        features[TOKENISED], features["labels"] = self.masking.apply(tokens, fixed, index, mask=mask, size=size)

    def _with_a_token(self, features: Features, index: int) -> Features:
        """An example without a token as one of padding that predicts nothing: its loss is 0.

        Raises:
            DataError: there is nothing to classify in it, or a query that asks for nothing.
        """
        where, tokens = f"{self.where}: example {index}", features.get(TOKENISED)
        if is_sequence(tokens) and len(tokens) == 0:
            if not self.task.of_tokens:
                raise DataError(f"{where} has no tokens, so that nothing can be read off it; leave it out")
            features = {**{name: [0] for name in features}, "labels": [IGNORED]}
            if MASK in features:
                features[MASK] = [1]
        if self.asks and self.task.of_tokens and not _predicts(features.get("labels", ()), self.task):
            raise DataError(
                f"{where} has no token that is predicted (no tokens, or labels of -100 throughout), so its loss is 0 "
                "whatever caused it; leave it out"
            )
        return features


@final
@dataclass(frozen=True, eq=False)
class Given:
    """Reads an example as it stands, less the columns in which the model takes no interest.

    columns: those that are kept; None keeps all.
    expected: those that the first row has; None does not compare.

    Raises:
        DataError: an example has not the columns of the first; with its index.
    """

    columns: frozenset[str] | None
    where: str
    expected: frozenset[str] | None = None

    def __call__(self, row: Mapping[str, Any], index: int) -> Features:
        """The features of example `index`."""
        found = self.relevant(row)
        if self.columns is not None and self.expected is not None and found != self.expected:
            raise DataError(
                f"{self.where}: example {index} has the columns {sorted(found)}, unlike example 0, which has "
                f"{sorted(self.expected)}; all rows must have the same"
            )
        return {name: row[name] for name in row if self.columns is None or name in self.columns}

    def relevant(self, row: Mapping[str, Any]) -> frozenset[str]:
        """The columns of a row that are kept."""
        return frozenset(name for name in present(row) if self.columns is None or name in self.columns)


def _predicts(labels: Collection[int], task: Task) -> bool:
    return any(int(label) != IGNORED for label in list(labels)[task is Task.CAUSAL :])

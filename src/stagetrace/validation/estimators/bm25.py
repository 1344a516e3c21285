"""BM25: examples that share rare words with the query are assumed to help it."""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any, final

import torch
from torch import Tensor

from stagetrace.errors import DataError, DescriptionError, refuse
from stagetrace.progress import Progress, Silent
from stagetrace.stages.chain import Chain
from stagetrace.stages.data import Examples
from stagetrace.tracing.query import WHERE, Query
from stagetrace.validation.estimators.estimator import check_name

Text = Callable[[Any], str]
"""`text(example) -> str`."""


@final
@dataclass(frozen=True)
class BM25:
    """The BM25 score of each training text D for the query texts, without any model.

        removal effect = + sum over words w of the query text of  log(1 + (n - n_w + 1/2) / (n_w + 1/2)) * f / (f + s)
        s = k1 (1 - b + b |D| / mean |D|)

    n: the stage's examples; n_w: those with the word; f: how often D has it; |D|: words in D. A word that the query
    text repeats counts as often. Words are runs of letters, digits and `_`, in lower case. Reduced over the query
    examples as their losses are. Similar texts are assumed to help: removing one is predicted to raise the query loss.
    Sign: negative = removing it helps (none is). Unit: none, only the ranking means something.

    Args:
        text: `text(example) -> str` of an example of the stage or the query, as the data set gives it (not collated);
            or a column's name, where examples are dicts.
        k1: how fast further occurrences of a word stop counting.
        b: how much the scores of long texts are reduced, from 0 to 1.
        name: for tables.

    Raises:
        DescriptionError: an argument is of the wrong kind or out of range.

    Source: Robertson and Zaragoza (2009); Lucene's variant, whose weights of words are never negative
    (Kamphuis et al. 2020). Computed by `bm25s` (Lù 2024): pip install 'stagetrace[text]'.

    Example:
        >>> BM25("text").name, BM25(lambda example: example[0], k1=1.2).unit is None
        ('BM25', True)
    """

    text: Text | str
    k1: float = 1.5
    b: float = 0.75
    name: str = "BM25"

    def __post_init__(self) -> None:
        check_name("BM25", self.name)
        if not (isinstance(self.text, str) or callable(self.text)):
            refuse(f"BM25(text=...) must be a column's name or a function text(example) -> str, got {self.text!r}")
        if not (isinstance(self.k1, (int, float)) and 0 < self.k1 < float("inf")):
            refuse(f"BM25(k1=...) must be a positive number, got {self.k1!r}; 1.5 is usual")
        if not (isinstance(self.b, (int, float)) and 0 <= self.b <= 1):
            refuse(f"BM25(b=...) must be from 0 to 1, got {self.b!r}; 0.75 is usual")

    @property
    def unit(self) -> str | None:
        return None

    def removal_effects(self, chain: Chain, query: Query, stage: str, progress: Progress | None = None) -> Tensor:
        """As `Estimator` says; every process of several does all of it.

        Raises:
            DescriptionError: also where `bm25s` is not installed, or an example has no such column.
            DataError: a text is not a string, or no text of the stage has a word.
        """
        chain.check_names([stage], self.name)
        its, bars = chain[stage].stage, progress or Silent()
        library = _library(self.name)
        documents = self._words(Examples(its.data, its.batch_size, list, its.workers, its.where), bars)
        if not any(documents):
            raise DataError(f"{self.name}: no text of {its.where} has a word; give text=, what an example's text is")
        first, *contrast = (
            self._reduced(library, documents, self._words(side, bars), query, bars)
            for side in query.sides(list)  # a document is like the contrast as it is like the query
        )
        return first - contrast[0] if contrast else first

    def _reduced(
        self, library: Any, documents: list[list[str]], asked: list[list[str]], query: Query, progress: Progress
    ) -> Tensor:
        """The scores of all documents for the texts that are asked about, reduced as the query is."""
        rows = self._scores(library, documents, asked, progress)
        if query.reduction == "none":
            return torch.stack(list(rows))
        total = torch.zeros(len(documents), dtype=torch.float64)
        for row in rows:
            total += row
        return total / len(asked) if query.reduction == "mean" else total

    def _scores(
        self, library: Any, documents: list[list[str]], asked: list[list[str]], progress: Progress
    ) -> Iterator[Tensor]:
        """The scores of all documents for each query text, `[n]`."""
        vocabulary = {word: number for number, word in enumerate(sorted({w for words in documents for w in words}))}
        index = library.BM25(k1=self.k1, b=self.b, method="lucene", dtype="float64")
        numbered = [[vocabulary[word] for word in words] for words in documents]
        index.index((numbered, vocabulary), create_empty_token=False, show_progress=False)
        with progress.task(f"{self.name} of {WHERE}", len(asked), "texts") as advance:
            for words in asked:
                known = [vocabulary[word] for word in words if word in vocabulary]
                yield torch.from_numpy(index.get_scores_from_ids(known))
                advance(1)

    def _words(self, examples: Examples, progress: Progress) -> list[list[str]]:
        """The words of every example's text."""
        words: list[list[str]] = []
        with progress.task(f"reading the texts of {examples.where}", len(examples), "examples") as advance:
            for batch in examples.read(examples.batch_indices()):
                words += [
                    self._words_of(*pair, examples.where) for pair in zip(batch.indices, batch.content, strict=True)
                ]
                advance(len(batch))
        return words

    def _words_of(self, index: int, example: Any, where: str) -> list[str]:
        if callable(self.text):
            text = self.text(example)
        elif isinstance(example, Mapping) and self.text in example:
            text = example[self.text]
        else:
            got = f"a dict with {list(example)}" if isinstance(example, Mapping) else type(example).__name__
            refuse(
                f"{self.name}: {where}: example {index} has no column '{self.text}', it is {got}; "
                "give text=, a column's name or a function text(example) -> str"
            )
        if not isinstance(text, str):
            raise DataError(f"{self.name}: {where}: the text of example {index} is {type(text).__name__}, not str")
        return re.findall(r"\w+", text.lower())


def _library(name: str) -> Any:
    try:
        return import_module("bm25s")
    except ImportError as cause:
        raise DescriptionError(
            f"{name} needs bm25s, which is not installed; type: pip install 'stagetrace[text]' (or: pip install bm25s)"
        ) from cause

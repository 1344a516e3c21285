"""BM25 against its formula by hand."""

import math
import re
import sys
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from stagetrace import Chain, Query, Stage
from stagetrace.errors import DataError, DescriptionError
from stagetrace.objectives import Regression
from stagetrace.validation.estimators import BM25
from tests.validation.shared import each_reduction, reduced

TEXTS = ["The cat sat.", "the dog, the DOG!", "", "a cat and a dog and a bird", "rain", "rain rain cat"]
QUESTIONS = ["Cat? cat the", "rain in spain", "nothing known", ""]


def bm25_by_hand(documents: list[str], question: str, k1: float, b: float) -> list[float]:
    words = [re.findall("[a-z]+", text.lower()) for text in documents]
    mean_length = sum(map(len, words)) / len(words)
    scores = []
    for document in words:
        score = 0.0
        for word in re.findall("[a-z]+", question.lower()):
            having = sum(word in other for other in words)
            rarity = math.log(1 + (len(words) - having + 0.5) / (having + 0.5))
            f = document.count(word)
            score += rarity * f / (f + k1 * (1 - b + b * len(document) / mean_length))
        scores.append(score)
    return scores


def bag(batch: list[Any]) -> tuple[Tensor, Tensor]:
    """Lengths of texts against zeros: BM25 reads the examples themselves, not the batch."""
    texts = [example["text"] if isinstance(example, dict) else example for example in batch]
    return torch.tensor([[float(len(text))] for text in texts]), torch.zeros(len(batch), 1)


def text_chain(examples: list[Any]) -> Chain:
    model = nn.Linear(1, 1)
    return Chain(Stage("only", model=model, objective=Regression(), data=examples, collate=bag, batch_size=4))


@pytest.fixture
def _bm25s() -> None:
    pytest.importorskip("bm25s", reason="needs stagetrace[text]")


@pytest.mark.usefixtures("_bm25s")
@each_reduction
@pytest.mark.parametrize("settings", [{}, {"k1": 0.9, "b": 0.4}])
def test_bm25_equals_the_formula_by_hand(reduction: Any, settings: dict[str, Any]):
    k1, b = settings.get("k1", 1.5), settings.get("b", 0.75)
    rows = torch.tensor([bm25_by_hand(TEXTS, question, k1, b) for question in QUESTIONS], dtype=torch.float64)
    as_dicts = (
        text_chain([{"text": text} for text in TEXTS]),
        Query([{"text": q} for q in QUESTIONS], reduction=reduction),
    )
    as_strings = text_chain(TEXTS), Query(QUESTIONS, reduction=reduction, batch_size=3)
    for (chain, query), text in ((as_dicts, "text"), (as_strings, str)):
        found = BM25(text, **settings).removal_effects(chain, query, "only")
        torch.testing.assert_close(found, reduced(rows, reduction), rtol=1e-12, atol=1e-15)


@pytest.mark.usefixtures("_bm25s")
@pytest.mark.parametrize(
    ("examples", "text", "message"),
    [
        ([{"text": "a"}], "body", r"BM25: stage 'only': example 0 has no column 'body', it is a dict with \['text'\]"),
        (["a"], "text", "example 0 has no column 'text', it is str; give text="),
        ([{"text": "a"}, {"text": 3}], "text", "the text of example 1 is int, not str"),
        (["", "?!"], str, "no text of stage 'only' has a word"),
    ],
)
def test_what_is_no_text_is_refused(examples, text, message):
    with pytest.raises((DescriptionError, DataError), match=message):
        BM25(text).removal_effects(text_chain(examples), Query(examples), "only")


def test_a_missing_library_says_what_to_install(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "bm25s", None)
    with pytest.raises(DescriptionError, match=r"pip install 'stagetrace\[text\]'"):
        BM25(str).removal_effects(text_chain(TEXTS), Query(QUESTIONS), "only")

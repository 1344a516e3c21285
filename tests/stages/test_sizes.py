"""Batches of examples of like size: little padding, the same numbers in the user's order, each example read once."""

from collections.abc import Callable
from itertools import chain
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

import stagetrace.stages.data as reading
import stagetrace.stages.sizes as module
from stagetrace import Chain, Frozen, Query, Stage
from stagetrace.curvature.mixed import mixed_product
from stagetrace.errors import DataError
from stagetrace.objectives import Classification
from stagetrace.stages.data import Examples
from stagetrace.stages.sizes import read_by_size, size_of
from stagetrace.tracing.score import Scorer
from tests.padded import CLASSES, WORDS, Bag, Pair, padded, widths

LENGTHS = [1 + (7 * place) % 40 for place in range(61)]


class Texts:
    """Texts of these lengths, drawn by a seed; counts how often each is read."""

    def __init__(self, lengths: list[int], seed: int = 1) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.rows = [
            (torch.randint(1, WORDS, (n,), generator=generator), torch.randint(0, CLASSES, (), generator=generator))
            for n in lengths
        ]
        self.reads = [0] * len(lengths)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Pair:
        self.reads[index] += 1
        return self.rows[index]


def examples(data: Any, batch_size: int = 8, workers: int = 0) -> Examples:
    return Examples(data, batch_size, padded, workers, "the data")


def texts_of_both(batch_size: int) -> Chain:
    torch.manual_seed(0)
    before, after = Bag().double(), Bag().double()
    after.vectors.load_state_dict(before.vectors.state_dict())

    def stage(name: str, model: Bag, seed: int, link: Any = None) -> Stage:
        data = Texts(LENGTHS, seed)
        return Stage(
            name, model=model, objective=Classification(), data=data, collate=padded, batch_size=batch_size, link=link
        )

    return Chain(stage("before", before, 1), stage("after", after, 2, Frozen("vectors")))


def query(batch_size: int, reduction: Any) -> Query:
    return Query(Texts(LENGTHS[:23], 3), reduction=reduction, batch_size=batch_size, collate=padded)


def quantities(batch_size: int) -> dict[str, Tensor]:
    """All that is summed or placed over examples that were read alike."""
    chained = texts_of_both(batch_size)
    asked, after = query(batch_size, "none"), chained["after"]
    adjoints = torch.linspace(-1, 1, 2 * after.trained.size, dtype=torch.float64).reshape(-1, 2)
    mean, each = query(batch_size, "mean").gradient(chained.last), asked.gradient(chained.last)
    return {
        "the mean gradient": torch.cat([mean.trained, mean.inherited]),
        "each gradient": torch.cat([each.trained, each.inherited]),
        "the losses": asked.loss(chained.last),
        "the coupling": mixed_product(after.risk, range(5, 60), adjoints),
        "the scores": Scorer.of(after.risk, adjoints, parts=False, rows=2).part(range(3, 50), silent).values.double(),
    }


def silent(*_: Any, **__: Any) -> None:
    return None


def test_all_numbers_are_those_of_examples_read_one_by_one() -> None:
    alone = quantities(1)
    for batch_size in (7, 256):
        for name, found in quantities(batch_size).items():
            digits = 1e-6 if name == "the scores" else 1e-10  # a matrix of scores is held in float32
            torch.testing.assert_close(found, alone[name], rtol=digits, atol=digits * float(alone[name].abs().max()))


def scored(alike: Callable[[], None]) -> tuple[Tensor, int]:
    """Scores along a fixed vector, part by part, and the words they took with their padding."""
    alike()
    bound = texts_of_both(4)["before"]
    adjoints = torch.linspace(-1, 1, bound.trained.size, dtype=torch.float64).unsqueeze(1)
    scorer = Scorer.of(bound.risk, adjoints, parts=False, rows=None)
    widths.clear()
    parts = [scorer.part(some, silent).values for some in (range(30), range(30, len(LENGTHS)))]
    return torch.cat(parts), sum(widths)


def test_scoring_pads_less_and_gives_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    found, words = scored(lambda: None)
    expected, before = scored(lambda: monkeypatch.setattr(module, "differ", lambda _: False))
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    assert words < 1.2 * sum(LENGTHS) < 1.5 * sum(LENGTHS) < before


@given(st.lists(st.integers(1, 6), min_size=1, max_size=40), st.integers(1, 5), st.integers(1, 4))
def test_every_example_comes_once_with_its_own_content(lengths: list[int], size: int, window: int) -> None:
    data = Texts(lengths)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "WINDOW", window)
        batches = list(read_by_size(examples(data), size=size))
    assert sorted(index for batch in batches for index in batch.indices) == list(range(len(lengths)))
    assert max(map(len, batches)) <= size
    for batch in batches:
        words, labels = batch.content
        for row, label, index in zip(words, labels, batch.indices, strict=True):
            assert torch.equal(row[: lengths[index]], data.rows[index][0])
            assert not bool(row[lengths[index] :].any())
            assert label == data.rows[index][1]


def test_a_window_is_read_once_and_ordered_by_size() -> None:
    data = Texts(LENGTHS)
    source = examples(data, batch_size=4)
    assert module.differ(source)
    data.reads = [0] * len(LENGTHS)
    batches = list(read_by_size(source))
    assert data.reads == [1] * len(LENGTHS)
    lengths = [LENGTHS[index] for batch in batches for index in batch.indices]
    assert lengths == sorted(lengths)


def test_a_window_is_small_where_examples_are_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "WINDOW_NUMBERS", 8 * (1 + max(LENGTHS)))  # two batches of four
    lengths = [[LENGTHS[i] for i in batch.indices] for batch in read_by_size(examples(Texts(LENGTHS), batch_size=4))]
    windows = [list(chain.from_iterable(lengths[start : start + 2])) for start in range(0, len(lengths), 2)]
    assert windows == [sorted(LENGTHS[start : start + 8]) for start in range(0, len(LENGTHS), 8)]


def test_examples_of_one_size_are_read_as_they_lie() -> None:
    source = examples(Texts([5] * 11), batch_size=4)
    assert [list(batch.indices) for batch in read_by_size(source)] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10]]
    assert [list(batch.indices) for batch in read_by_size(source, [9, 2, 4], 2)] == [[9, 2], [4]]


def test_workers_read_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "WORKERS_PAY", -1)
    source = examples(Texts(LENGTHS), batch_size=4, workers=2)
    read = [index for batch in read_by_size(source) for index in batch.indices]
    assert sorted(read) == list(range(len(LENGTHS)))
    lengths = [LENGTHS[index] for index in read]
    assert lengths == sorted(LENGTHS[:32]) + sorted(LENGTHS[32:])  # a window for each


class Broken(Texts):
    def __getitem__(self, index: int) -> Pair:
        if index == 21:
            raise ZeroDivisionError("by nothing")
        return super().__getitem__(index)


def test_an_example_that_cannot_be_read_is_named() -> None:
    with pytest.raises(DataError, match=r"^the data: example 21 cannot be read \(ZeroDivisionError: by nothing\)"):
        list(read_by_size(examples(Broken(LENGTHS))))


def test_sizes() -> None:
    assert size_of({"input_ids": [1, 2, 3], "labels": 1}) == 4
    assert size_of((torch.zeros(2, 3), 1.0)) == 7
    assert size_of("four") == 4
    assert size_of((np.zeros((2, 5)), Image.new("L", (3, 4)))) == 22
    assert size_of([[1, 2], [3], []]) == 3

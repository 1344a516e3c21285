"""Losses are the same twice and in any company, on the examples where that is likeliest to fail."""

import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from stagetrace import Chain, Query, Stage, trace
from stagetrace.checks import verify_stage
from stagetrace.checks.lookout import Lookout, length
from stagetrace.errors import DataError
from stagetrace.objectives import Regression
from stagetrace.stages.data import Examples


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def verified(model: nn.Module, loss: Any, data: Any, **settings: Any) -> list[Any]:
    return verify_stage(Chain(Stage("only", model=model, objective=loss, data=data, **settings))["only"])


ROWS = [(drawn(3, seed=i), drawn(3, seed=100 + i)) for i in range(20)]


# Losses that are random


def by_torch(x: Tensor) -> Tensor:
    return x + torch.randn_like(x)


def by_numpy(x: Tensor) -> Tensor:
    return x + float(np.random.rand())


def by_python(x: Tensor) -> Tensor:
    return x + random.random()


def by_dropout(x: Tensor) -> Tensor:
    return nn.functional.dropout(x, 0.5)


def a_little(x: Tensor) -> Tensor:
    return x * (1 + 1e-5 * torch.rand(()))


class Counting:
    """No randomness, but another answer at each call."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x + self.calls


@pytest.mark.parametrize(
    ("noise", "source"),
    [
        (by_torch, "from torch"),
        (by_numpy, "from NumPy"),
        (by_python, "from Python's random"),
        (by_dropout, "from torch"),
        (a_little, "from torch"),
        (Counting(), "keeps a state"),
    ],
)
def test_a_random_loss_is_refused_and_called_random(noise: Any, source: str):
    def loss(model: nn.Module, batch: Any) -> Tensor:
        return (model(noise(batch[0])) - batch[1]).square().mean(1)

    with pytest.raises(DataError, match=rf"stage 'only': the loss is random: two evaluations of example .*{source}"):
        verified(nn.Linear(3, 3), loss, ROWS)


def test_a_random_query_is_refused():
    def loss(model: nn.Module, batch: Any) -> Tensor:
        return (model(by_torch(batch[0])) - batch[1]).square().mean(1)

    stage = Stage("only", model=nn.Linear(3, 3), objective=Regression(), data=ROWS, weight_decay=0.1)
    with pytest.raises(DataError, match="the query: the loss is random"):
        trace(Chain(stage), Query(ROWS, objective=loss))


# Losses that depend on their company


def padded(rows: Sequence[Tensor]) -> Tensor:
    return pad_sequence(list(rows), batch_first=True)


def mean_over_padding(model: nn.Module, batch: Tensor) -> Tensor:
    """The classical mistake: the mean runs over the padding too."""
    return model(batch.unsqueeze(-1)).squeeze(-1).square().mean(1)


def mean_over_own(model: nn.Module, batch: Tensor) -> Tensor:
    there = (batch != 0).float()
    return (model(batch.unsqueeze(-1)).squeeze(-1).square() * there).sum(1) / there.sum(1)


class Lazy:
    """A data set that makes its items when they are asked for: all of length 4 but one."""

    def __init__(self, rows: int, odd: int, size: int) -> None:
        self.rows, self.odd, self.size = rows, odd, size

    def __len__(self) -> int:
        return self.rows

    def __getitem__(self, index: int) -> Tensor:
        return 1 + drawn(self.size if index == self.odd else 4, seed=index).abs()


@pytest.mark.parametrize("size", [3, 9])
@pytest.mark.parametrize("odd", [600, 0, 999, 77])
@pytest.mark.parametrize("listed", [True, False])
def test_padding_that_leaks_at_one_row_is_found(size: int, odd: int, listed: bool):
    data: Any = Lazy(1_000, odd, size)
    if listed:
        data = [torch.ones(size if i == odd else 4) * (1 + i % 7) for i in range(1_000)]
    with pytest.raises(DataError, match=r"the loss of example \d+ depends on what else is in its batch"):
        verified(nn.Linear(1, 1), mean_over_padding, data, collate=padded, batch_size=64)


def test_padding_that_is_masked_is_right():
    data = Lazy(2_000, 500, 9)
    assert verified(nn.Linear(1, 1), mean_over_own, data, collate=padded, batch_size=64)


def normalised_by_the_batch(model: nn.Module, batch: Any) -> Tensor:
    x = batch[0]
    return (model((x - x.mean(0)) / (x.std(0) + 1e-6)) - batch[1]).square().mean(1)


def weighed_by_the_batch(model: nn.Module, batch: Any) -> Tensor:
    return (model(batch[0]) - batch[1]).square().mean(1) / len(batch[0])


def against_the_neighbour(model: nn.Module, batch: Any) -> Tensor:
    """A contrast with whatever comes next in the batch."""
    return (model(batch[0]) * model(batch[0].roll(1, 0))).mean(1)


@pytest.mark.parametrize("loss", [normalised_by_the_batch, weighed_by_the_batch, against_the_neighbour])
def test_losses_that_share_the_batch_are_refused(loss: Any):
    with pytest.raises(DataError, match="depends on what else is in its batch"):
        verified(nn.Linear(3, 3), loss, ROWS)


def test_a_small_batch_size_hides_nothing():
    """Curvature is taken over larger batches than scores are."""
    with pytest.raises(DataError, match="depends on what else is in its batch"):
        verified(nn.Linear(3, 3), weighed_by_the_batch, ROWS, batch_size=1)


def test_confident_predictions_are_not_called_dependent():
    """Losses of 1e-6 out of logits of 20: rounding of the logits is all that moves them."""
    last = nn.Linear(64, 4)
    model = nn.Sequential(nn.Linear(3, 64), last)
    with torch.no_grad():
        last.bias.copy_(torch.tensor([20.0, 0.0, 0.0, 0.0]))
        last.weight.mul_(0.1)

    def loss(model: nn.Module, batch: Any) -> Tensor:
        return nn.functional.cross_entropy(model(batch[0]), batch[0].new_zeros(len(batch[0])).long(), reduction="none")

    data = [(drawn(3, seed=i), 0) for i in range(500)]
    assert verified(model, loss, data)


# Which examples are looked at


def lookout(data: Any, batch_size: int = 32) -> Lookout:
    return Lookout.over(Examples(data, batch_size, padded, 0, "data"))


def test_the_shortest_longest_first_and_last_are_looked_at():
    sizes = torch.randint(5, 50, (1000,), generator=torch.Generator().manual_seed(1)).tolist()
    sizes[321], sizes[654] = 2, 99
    found = lookout([torch.ones(size) for size in sizes])
    assert {0, 999, 321, 654} <= set(found.together)
    assert {0, 999, 321, 654} <= set(found.alone)
    assert len(found.together) == 32
    assert [sizes[i] for i in found.by_length] == sorted(sizes[i] for i in found.together)
    assert found.measured == 1000


def test_a_data_set_can_tell_its_lengths():
    class Told(Lazy):
        def length_of(self, index: int) -> int:
            return 9 if index == 7 else 4

        def __getitem__(self, index: int) -> Tensor:
            raise AssertionError("no item needs to be made for its length")

    assert 7 in lookout(Told(100, 7, 9)).together


def test_items_are_not_read_where_unequal_ones_could_not_be_stacked():
    class Read(Lazy):
        read = 0

        def __getitem__(self, index: int) -> Tensor:
            Read.read += 1
            return super().__getitem__(index)

    found = Lookout.over(Examples(Read(500, -1, 4), 32, None, 0, "data"))
    assert (found.measured, Read.read) == (0, 1)
    assert len(found.together) == 32


def test_of_large_models_few_are_looked_at_and_these_first():
    sizes = torch.randint(5, 50, (1000,), generator=torch.Generator().manual_seed(1)).tolist()
    sizes[321], sizes[654] = 2, 99
    examples = Examples([torch.ones(size) for size in sizes], 32, padded, 0, "data")
    found = Lookout.over(examples, operations=10**12)
    assert set(found.together) == {0, 999, 321, 654}
    assert set(found.alone) == {321, 654}
    assert 321 not in found.short
    assert Lookout.over(examples, operations=1000) == Lookout.over(examples)


def test_texts_are_stacked_whatever_their_length():
    texts = [("word" if i != 70 else "a longer text", 1.0) for i in range(100)]
    found = Lookout.over(Examples(texts, 16, None, 0, "data"))
    assert 70 in found.together


def test_few_examples_are_all_looked_at():
    assert sorted(lookout([torch.ones(2)] * 3).together) == [0, 1, 2]


@pytest.mark.parametrize(
    ("item", "size"),
    [
        (torch.ones(2, 3), 6),
        (np.ones((4, 2)), 8),
        ("word", 4),
        ({"input_ids": [1, 2, 3], "labels": 1}, 4),
        ((torch.ones(5), [1.0, 2.0]), 7),
        ([[1, 2], [3]], 3),
        (7, 1),
        ([], 0),
    ],
)
def test_the_length_of_an_item(item: Any, size: int):
    assert length(item) == size


@pytest.mark.parametrize("order", [sorted, lambda rows, key: sorted(rows, key=key)[::-1], lambda rows, key: rows[::-1]])
def test_a_collation_with_an_order_of_its_own_is_refused(order: Any):
    rows = [torch.full((2 + (7 * i) % 5,), 1.0 + i) for i in range(40)]

    def turned(rows: list[Tensor]) -> Tensor:
        return padded(order(rows, key=len))

    with pytest.raises(DataError, match=r"depends on what else is in its batch.*keep the order of the examples"):
        verified(nn.Linear(1, 1), mean_over_own, rows, collate=turned)


class SinceAStart(nn.Module):
    """Time stamps in double precision, less an offset, before the layers in single precision."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(1, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer((x - 1.7e9).float())


def test_data_that_the_models_precision_cuts_are_refused():
    rows = [(torch.tensor([1.7e9 + i / 7], dtype=torch.float64), torch.zeros(1)) for i in range(20)]
    with pytest.raises(DataError, match=r"the data are torch.float64, and rounded to the model's torch.float32"):
        verified(SinceAStart(), Regression(), rows)
    moved = [(x - 1.7e9, y) for x, y in rows]
    assert verified(nn.Linear(1, 1), Regression(), moved)


def test_augmentation_of_a_few_items_is_seen():
    class Rare(Lazy):
        def __getitem__(self, index: int) -> Tensor:
            return super().__getitem__(index) + (torch.rand(()) if index % 50 == 17 else 0.0)

    with pytest.raises(DataError, match=r"example \d*(17|67) differs between two reads"):
        verified(nn.Linear(1, 1), mean_over_own, Rare(2_000, -1, 4), collate=padded, batch_size=16)

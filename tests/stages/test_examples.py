"""Reading data: any map-style data set, in the library's order, and nothing else of the caller's touched."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import datasets
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.data import (
    ConcatDataset,
    DataLoader,
    Dataset,
    IterableDataset,
    StackDataset,
    Subset,
    TensorDataset,
    get_worker_info,
)

from stagetrace.errors import DataError, DescriptionError
from stagetrace.stages.data import Batch, Examples, place

N = 7
X, Y = torch.arange(2.0 * N).reshape(N, 2), torch.arange(N)
PLAN = [[0, 1, 2], [5, 3], [6]]


class Items(Dataset):
    """The plainest map-style data set; counts what is read."""

    def __init__(self) -> None:
        self.reads: list[int] = []

    def __len__(self) -> int:
        return N

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        self.reads.append(index)
        return X[index], Y[index]


class Rows(Dataset[Tensor]):
    def __init__(self, rows: Tensor) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Tensor:
        return self.rows[index]


def hugging_face() -> Any:
    return datasets.Dataset.from_dict({"x": X.tolist(), "label": Y.tolist()}).with_format("torch")


def examples(data: Any, batch_size: int = 3, collate: Any = None, workers: int = 0) -> Examples:
    return Examples(data, batch_size, collate, workers, "the data")


def pair_of(content: Any) -> tuple[Tensor, Tensor]:
    return (content["x"], content["label"]) if isinstance(content, dict) else tuple(content)


SOURCES: dict[str, Any] = {
    "TensorDataset": TensorDataset(X, Y),
    "data set": Items(),
    "list of tuples": list(zip(X, Y.tolist(), strict=True)),
    "list of dicts": [{"x": x, "label": y} for x, y in zip(X, Y.tolist(), strict=True)],
    "Hugging Face": hugging_face(),
    "Subset": Subset(TensorDataset(X.flip(0), Y.flip(0)), range(N - 1, -1, -1)),
    "Subset of a Hugging Face data set": Subset(hugging_face(), range(N)),
    "ConcatDataset": ConcatDataset([TensorDataset(X[:2], Y[:2]), TensorDataset(X[2:], Y[2:])]),
    "StackDataset": StackDataset(x=Rows(X), label=Rows(Y)),
}


def assert_reads(source: Examples, plan: Sequence[Sequence[int]]) -> None:
    batches = list(source.read(plan))
    assert [list(batch.indices) for batch in batches] == [list(indices) for indices in plan]
    for batch in batches:
        x, y = pair_of(batch.content)
        torch.testing.assert_close(x, X[list(batch.indices)])
        torch.testing.assert_close(y, Y[list(batch.indices)])


@pytest.mark.parametrize("source", SOURCES)
def test_any_data_set_gives_the_examples_of_the_plan(source: str):
    assert_reads(examples(SOURCES[source]), PLAN)
    assert_reads(examples(SOURCES[source]), examples(SOURCES[source]).plan())


@given(st.lists(st.lists(st.integers(0, N - 1), min_size=1, max_size=5), max_size=4))
def test_slices_of_a_tensor_data_set_equal_its_items(plan: list[list[int]]):
    # In any order and with repetitions, as random draws of examples have them.
    assert_reads(examples(TensorDataset(X, Y)), plan)


def test_a_tensor_is_a_data_set_of_its_rows():
    batches = list(examples(X).read(PLAN))
    for batch in batches:
        torch.testing.assert_close(batch.content, X[list(batch.indices)])


def test_a_custom_collation_gets_the_examples():
    def collate(items: list[tuple[Tensor, Tensor]]) -> dict[str, Any]:
        return {"first": [x[0].item() for x, _ in items], "count": len(items)}

    batches = list(examples(TensorDataset(X, Y), collate=collate).read([[1, 4], [0]]))
    assert [batch.content for batch in batches] == [{"first": [2.0, 8.0], "count": 2}, {"first": [0.0], "count": 1}]


def test_workers_read_the_same_in_the_same_order():
    for data in (Items(), TensorDataset(X, Y)):
        assert_reads(examples(data, workers=2), PLAN)


class Reader(Items):
    """Says which process reads: -1 in this one."""

    def __getitem__(self, index: int) -> Any:
        worker = get_worker_info()
        return index, -1 if worker is None else worker.id


@pytest.mark.parametrize(("workers", "readers"), [(0, {-1}), (2, {0, 1})])
def test_as_many_processes_read_as_asked_for(workers: int, readers: set[int]):
    batches = list(examples(Reader(), workers=workers).read(PLAN))
    assert {int(reader) for batch in batches for reader in batch.content[1]} == readers


def test_the_plan_covers_every_example_once_and_the_last_batch_is_shorter():
    source = examples(X)
    assert [list(indices) for indices in source.plan()] == [[0, 1, 2], [3, 4, 5], [6]]
    assert [list(indices) for indices in source.plan([4, 2, 0, 1])] == [[4, 2, 0], [1]]
    assert [list(indices) for indices in source.plan(range(2, 6), size=10)] == [[2, 3, 4, 5]]
    assert [len(batch) for batch in source.read(source.plan())] == [3, 3, 1]
    assert len(source) == N


def test_only_the_examples_asked_for_are_read():
    data = Items()
    next(iter(examples(data).read([[5, 1]])))
    assert data.reads == [5, 1]


def test_reading_leaves_the_random_state_alone():
    before = torch.get_rng_state()
    for data in (Items(), TensorDataset(X, Y), hugging_face()):
        list(examples(data).read(PLAN))
    assert torch.equal(torch.get_rng_state(), before)


# What is no such data set


class Stream(IterableDataset):
    def __iter__(self) -> Any:
        return iter([1, 2])


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (DataLoader(TensorDataset(X)), r"data is a DataLoader.*data=loader\.dataset"),
        (Stream(), "must be a map-style data set or a list .*, got Stream"),
        (iter([1, 2]), "must be a map-style data set or a list"),
        (3, "got int"),
        ({"x": X}, "data must be indexed by 0, 1, 2, ...; got dict"),
        ("text", "got str"),
    ],
    ids=["loader", "iterable", "iterator", "number", "dict", "string"],
)
def test_what_has_no_order_of_its_own_is_refused(data: Any, says: str):
    with pytest.raises(DescriptionError, match=says):
        examples(data)


def test_examples_that_cannot_be_collated_are_named():
    ragged = [(torch.ones(length), 0) for length in (2, 2, 3)]
    with pytest.raises(DataError, match=r"the data: examples 1\.\.2 cannot be read or collated \(RuntimeError: stack"):
        list(examples(ragged).read([[0], [1, 2]]))


def test_an_example_that_cannot_be_read_is_named():
    class Broken(Items):
        def __getitem__(self, index: int) -> Any:
            return super().__getitem__(index) if index < 4 else 1 / 0

    with pytest.raises(DataError, match=r"examples 3\.\.5 cannot be read or collated \(ZeroDivisionError"):
        list(examples(Broken()).read([[0, 1, 2], [3, 4, 5]]))


# Where a batch lies


class Point(NamedTuple):
    x: Tensor
    y: Tensor


def test_a_batch_goes_to_the_model_s_dtype_in_any_nesting():
    content: dict[str, Any] = {
        "x": torch.ones(2),
        "tokens": torch.tensor([1, 2]),
        "mask": torch.tensor([True, False]),
        "nested": [(torch.ones(1, dtype=torch.float16), "text"), Point(torch.ones(1), torch.tensor([3]))],
        "nothing": None,
    }
    placed = place(content, torch.float64, torch.device("cpu"))
    assert placed["x"].dtype == torch.float64
    assert placed["tokens"].dtype == torch.int64
    assert placed["mask"].dtype == torch.bool
    pair, point = placed["nested"]
    assert isinstance(pair, tuple)
    assert (pair[0].dtype, pair[1]) == (torch.float64, "text")
    assert isinstance(point, Point)
    assert (point.x.dtype, point.y.dtype) == (torch.float64, torch.int64)
    assert placed["nothing"] is None
    assert content["x"].dtype == torch.float32


def test_a_batch_is_as_long_as_its_indices():
    assert len(Batch([3, 1], None)) == 2

"""Reading data: any map-style data set, in the library's order, and nothing else of the caller's touched."""

import time
from collections.abc import Sequence
from typing import Any

import datasets
import numpy as np
import pandas
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor
from torch.utils.data import (
    ConcatDataset,
    DataLoader,
    Dataset,
    IterableDataset,
    StackDataset,
    Subset,
    TensorDataset,
    default_collate,
    get_worker_info,
)

import stagetrace.stages.data as module
from stagetrace.errors import DataError, DescriptionError
from stagetrace.hf.collate import Collation
from stagetrace.stages.data import Batch, Examples

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
    assert_reads(examples(SOURCES[source]), examples(SOURCES[source]).batch_indices())


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


def test_workers_read_the_same_in_the_same_order(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "WORKERS_PAY", -1)
    for data in (Items(), TensorDataset(X, Y)):
        assert_reads(examples(data, workers=2), PLAN)


class Reader(Items):
    """Says which process reads: -1 in this one."""

    def __getitem__(self, index: int) -> Any:
        worker = get_worker_info()
        return index, -1 if worker is None else worker.id


@pytest.mark.parametrize(("workers", "readers"), [(0, {-1}), (2, {0, 1})])
def test_as_many_processes_read_as_asked_for(workers: int, readers: set[int], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "WORKERS_PAY", -1)
    batches = list(examples(Reader(), workers=workers).read(PLAN))
    assert {int(reader) for batch in batches for reader in batch.content[1]} == readers


class Slow(Reader):
    """Takes a hundredth of a second for an example."""

    def __getitem__(self, index: int) -> Any:
        time.sleep(0.01)
        return super().__getitem__(index)


def test_workers_are_started_where_reading_takes_long_enough(monkeypatch: pytest.MonkeyPatch):
    """What is left after a batch decides, and what earlier reads took; the order is the plan's whoever reads."""

    def readers(source: Examples) -> list[int]:
        return [int(reader) for batch in source.read([[0, 1], [2], [3, 4], [5, 6]]) for reader in batch.content[1]]

    assert readers(examples(Slow(), workers=2)) == [-1] * 7
    monkeypatch.setattr(module, "WORKERS_PAY", 0.03)
    slow = examples(Slow(), workers=2)
    assert readers(slow) == [-1, -1, 0, 1, 1, 0, 0]
    assert readers(slow) == [0, 0, 1, 0, 0, 1, 1]
    monkeypatch.setattr(module, "WORKERS_PAY", 3 * slow.pace)  # more than two examples take, on whatever machine
    assert [int(batch.content[1][0]) for batch in slow.read([[0], [3]])] == [-1, -1]


def test_the_plan_covers_every_example_once_and_the_last_batch_is_shorter():
    source = examples(X)
    assert [list(indices) for indices in source.batch_indices()] == [[0, 1, 2], [3, 4, 5], [6]]
    assert [list(indices) for indices in source.batch_indices([4, 2, 0, 1])] == [[4, 2, 0], [1]]
    assert [list(indices) for indices in source.batch_indices(range(2, 6), size=10)] == [[2, 3, 4, 5]]
    assert [len(batch) for batch in source.read(source.batch_indices())] == [3, 3, 1]
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
        (Stream(), r"is a stream \(Stream\).* type stagetrace.corpora.Stream\("),
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
    with pytest.raises(DataError, match=r"^the data, example 2: item 0 has shape \[3\], in another .* \[2\]$"):
        list(examples(ragged).read([[0], [1, 2]]))


class Broken(Items):
    """Says a length, and fails from some example on."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error

    def __getitem__(self, index: int) -> Any:
        if index < 4:
            return super().__getitem__(index)
        raise self.error


@pytest.mark.parametrize("workers", [0, 1])
def test_an_example_that_cannot_be_read_is_named(workers: int):
    says = r"^the data: example 4 cannot be read \(ZeroDivisionError: by nothing\); fix the data set$"
    with pytest.raises(DataError, match=says):
        list(examples(Broken(ZeroDivisionError("by nothing")), workers=workers).read([[0, 1, 2], [3, 4, 5]]))


def test_a_length_that_is_not_true_is_said():
    with pytest.raises(DataError, match=r"its length is 7, but example 4 cannot be read \(IndexError: out\); correct"):
        list(examples(Broken(IndexError("out"))).read([[0, 1, 2], [3, 4, 5]]))


# A data set is read as PyTorch's loader reads it


class Unit(TensorDataset):
    def __getitem__(self, index: Any) -> Any:
        x, y = super().__getitem__(index)
        return x / x.norm(), y


class Turned(TensorDataset):
    def __getitem__(self, index: Any) -> Any:
        x, y = super().__getitem__(index)
        return x.flip(0), y


class Counted(TensorDataset):
    """Adds the index, which must be one number."""

    def __getitem__(self, index: Any) -> Any:
        x, y = super().__getitem__(index)
        return x + float(index), y


class Longer(TensorDataset):
    """Every example twice."""

    def __len__(self) -> int:
        return 2 * super().__len__()

    def __getitem__(self, index: Any) -> Any:
        return super().__getitem__(index // 2)


class Renamed(TensorDataset):
    def __getitem__(self, index: Any) -> Any:
        x, y = super().__getitem__(index)
        return {"x": x, "label": y}


class Several(Items):
    """Reads several items at once, otherwise than one by one."""

    def __getitems__(self, indices: list[int]) -> list[Any]:
        return [(X[index] + 100, Y[index]) for index in indices]


class Clipped(Several):
    """Changes items, but inherits the reading of several at once, by which PyTorch's loader goes."""

    def __getitem__(self, index: int) -> Any:
        x, y = super().__getitem__(index)
        return x.clamp(max=3), y


READ: dict[str, Any] = {
    "item by item": lambda: Unit(X + 1, Y),
    "turned": lambda: Turned(X, Y),
    "its index": lambda: Counted(X, Y),
    "another length": lambda: Longer(X, Y),
    "other rows": lambda: Renamed(X, Y),
    "several at once": Several,
    "several at once, inherited": Clipped,
    "parts of subclasses": lambda: ConcatDataset([Unit(X + 1, Y), Turned(X, Y)]),
    "stacked subclasses": lambda: StackDataset(Turned(X, Y), Unit(X + 1, Y)),
    "an array": lambda: X.numpy(),
}


@pytest.mark.parametrize("data", READ)
def test_batches_are_those_of_pytorch_s_loader(data: str):
    source = READ[data]()
    own = examples(source, 3)
    loader = DataLoader(source, batch_size=3)
    batches = [batch.content for batch in own.read(own.batch_indices())]
    assert len(batches) == len(loader)
    for ours, theirs in zip(batches, loader, strict=True):
        torch.testing.assert_close(listed(ours), listed(theirs))


def listed(content: Any) -> Any:
    return [listed(part) for part in content] if isinstance(content, (tuple, list)) else content


# Rows that PyTorch's own collation would turn round or cut


ROWS = {
    "a list in a dict": ([{"input_ids": [1, 2, 3], "label": 0}], "'input_ids' is a list of 3 numbers.*3 columns"),
    "a list in a tuple": ([([1.0, 2.0], 0)], "item 0 is a list of 2 numbers"),
    "a tuple in a tuple": ([((1.0, 2.0), 0)], "item 0 is a tuple of 2 numbers"),
    "lists of lists": ([{"image": [[1, 2], [3, 4]]}], r"'image'\[0\] is a list of 2 numbers"),
    "a list of numbers": ([[0.1, 0.2, 0.3]], "it is a list of 3 numbers"),
    "a list of texts": ([{"words": ["a", "b"]}], "'words' is a list of 2 texts"),
    "a list of single tensors": ([{"x": [torch.tensor(1.0), torch.tensor(2.0)]}], "'x' is a list of 2 numbers"),
    "lists of different length": ([{"x": [1, 2]}, {"x": [1]}], "'x' is a list of 2 numbers"),
    "an empty list": ([{"x": []}], "'x' is an empty list"),
    "scalars of numpy": ([{"x": [np.float32(1)] * 2}], "'x' is a list of 2 numbers"),
    "none": ([{"x": torch.ones(1), "y": None}], "'y' is None"),
    "a picture": ([(Image.new("L", (2, 2)), 0)], r"item 0 is a picture \(Image\)"),
    "an array of objects": ([(np.array([None, 1]), 0)], "item 0 is an array of object"),
    "an object": ([(object(), 0)], "item 0 is a object"),
}


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("workers", [0, 1])
def test_rows_that_could_mean_several_things_are_refused(rows: str, workers: int):
    if workers and rows != "a list in a dict":
        pytest.skip("one is enough to see that the message comes through")
    data, says = ROWS[rows]
    with pytest.raises(DataError, match=rf"^the data, example 0: {says}.*collate="):
        list(examples(data, workers=workers).read([range(len(data))]))


LATER = {
    "another key": ([{"x": 1.0}, {"x": 1.0, "weight": 2.0}], r"keys \['x', 'weight'\].*not in both: 'weight'"),
    "a key less": ([{"x": 1.0, "y": 2.0}, {"x": 1.0}], "not in both: 'y'"),
    "another length": ([(1.0, 2.0), (1.0, 2.0, 3.0)], "it has 3 items, another example of its batch 2"),
    "another kind": ([(1.0, 2.0), {"x": 1.0}], "it is a dict, another example of its batch a tuple"),
    "another shape": ([{"x": torch.ones(2)}, {"x": torch.ones(3)}], r"'x' has shape \[3\].*\[2\]"),
    "a list later on": ([{"x": torch.ones(2)}, {"x": [1.0, 2.0]}], "'x' is a list of 2 numbers"),
}


@pytest.mark.parametrize("rows", LATER)
def test_an_example_unlike_those_before_it_is_named(rows: str):
    data, says = LATER[rows]
    with pytest.raises(DataError, match=rf"^the data, example 1: .*{says}"):
        list(examples(data).read([[0, 1]]))


def test_pytorch_s_own_form_is_there_for_the_asking():
    [batch] = examples([{"x": [1, 2]}, {"x": [3, 4]}], collate=default_collate).read([[0, 1]])
    torch.testing.assert_close(batch.content["x"], [torch.tensor([1, 3]), torch.tensor([2, 4])])


def test_what_has_one_meaning_is_put_together_as_pytorch_does():
    rows = [
        {"x": torch.ones(2), "text": "a", "n": 1, "pair": (torch.ones(1), np.ones(2)), "deep": {"flag": True}},
        {"x": torch.ones(2), "text": "b", "n": 2, "pair": (torch.ones(1), np.ones(2)), "deep": {"flag": False}},
    ]
    [batch] = examples(rows).read([[0, 1]])
    wanted = default_collate(rows)
    assert batch.content.pop("text") == wanted.pop("text") == ["a", "b"]
    torch.testing.assert_close(batch.content, wanted)


def test_a_collation_that_fails_is_named_with_the_example_that_differs():
    def stacked(rows: list[Any]) -> Any:
        return torch.stack([row["x"] for row in rows])

    rows = [{"x": torch.ones(2)}, {"x": torch.ones(2)}, {"x": torch.ones(3)}]
    says = (
        r"examples 0\.\.2 cannot be read or collated \(RuntimeError: stack.*in example 2 'x' has shape \[3\].*stacked"
    )
    with pytest.raises(DataError, match=says):
        list(examples(rows, collate=stacked).read([[0, 1, 2]]))


def test_rows_of_texts_are_sent_to_the_hugging_face_part():
    rows = [{"text": "a film", "label": 1}]
    with pytest.raises(DataError, match=r"'text' holds text.*hf\.query\(rows, stage="):
        list(examples(rows, collate=Collation()).read([[0]]))


NO_SETS: dict[str, tuple[Any, str]] = {
    "a pair of tensors": ((X, Y), r"which would be read as 2 examples.*TensorDataset\(x, y\)"),
    "a pair of arrays": ((X.numpy(), Y.numpy()), "which would be read as 2 examples"),
    "a frame": (pandas.DataFrame({"x": [1.0]}), r"a pandas DataFrame.*from_pandas\(data\)"),
    "a series": (pandas.Series([1.0, 2.0], index=[1, 0]), "a pandas Series"),
    "one number": (torch.tensor(1.0), "has no length"),
    "bytes": (b"text", "got bytes"),
    "a set": ({1, 2}, "got set"),
}


@pytest.mark.parametrize("data", NO_SETS)
def test_what_is_no_list_of_examples_is_refused(data: str):
    given, says = NO_SETS[data]
    with pytest.raises(DescriptionError, match=says):
        examples(given)


def test_a_batch_is_as_long_as_its_indices():
    assert len(Batch([3, 1], None)) == 2

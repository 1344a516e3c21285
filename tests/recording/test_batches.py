"""What a loader may give: arrays of any layout, what has no form in files, samplers of other things than numbers."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, Sampler, default_collate

from stagetrace import Recording
from stagetrace.errors import DescriptionError
from stagetrace.recording import Recorded
from stagetrace.recording.content import Unwritable, digest, read, written
from tests.replay.runs import Net, data_of

DATA: Any = data_of(6, 3, seed=1)
X = np.arange(12.0).reshape(3, 4)


@dataclass
class Rows:
    x: Tensor
    y: Tensor


class Pair(NamedTuple):
    x: Tensor
    y: Tensor


@pytest.mark.parametrize(
    "array", [X[:, ::-1], X.T, X.astype(">f8"), X.astype(">i4"), X.astype(np.float16), X[0, 0], X > 3, X.astype("u2")]
)
def test_arrays_come_back_whatever_their_layout(array: Any):
    found = read(*written({"x": array}))["x"]
    assert np.array_equal(found, array)
    assert digest(array) == digest(found)


@pytest.mark.parametrize(
    "given", [np.arange(3, dtype=np.longdouble), {1, 2}, torch.complex(*torch.randn(2, 3).double())]
)
def test_what_has_no_form_in_files_is_refused_with_what_to_give(given: Any):
    with pytest.raises(Unwritable, match=r"a batch holds a .*, which has no form in plain files; .*let collate give"):
        written([given])


@pytest.mark.parametrize(
    "make",
    [
        lambda x, y: Rows(x, y),
        lambda x, y: Pair(x, y),
        lambda x, y: (x.to_sparse(), y),
        lambda x, y: (torch.complex(x, x), y),
    ],
)
def test_made_again_they_are_compared_by_their_digests(make: Callable[[Tensor, Tensor], Any], tmp_path: Path):
    """The advice of the refusals is true: with inputs='again' such batches are recorded."""
    x, y = default_collate(DATA[:3])
    with pytest.raises(Unwritable, match="record with inputs='again'"):
        written(make(x, y))
    assert digest(make(x, y)) == digest(make(x.clone(), y))
    assert digest(make(x, y)) != digest(make(x + 1, y))
    model = Net(3, 0.0).double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with Recording(tmp_path, model, optimizer, inputs="again") as recording:
        with recording.batch([0, 1, 2], make(x, y)):
            F.cross_entropy(model(x), y).backward()
        optimizer.step()
    assert Recorded.load(tmp_path).steps == 1


class Of(Sampler[Any]):
    def __init__(self, keys: list[Any]) -> None:
        self.keys = keys

    def __iter__(self) -> Iterator[Any]:
        return iter(self.keys)

    def __len__(self) -> int:
        return len(self.keys)


class Keyed(Dataset[Any]):
    """Knows its rows by other things than numbers."""

    def __len__(self) -> int:
        return len(DATA)

    def __getitem__(self, key: Any) -> Any:
        return DATA[int(key[-1])]


@pytest.mark.parametrize("keys", [["row 0", "row 1"], [(0, 1), (0, 2)]])
def test_samplers_of_other_things_than_numbers_are_refused(keys: list[Any], tmp_path: Path):
    model = nn.Linear(4, 3).double()
    loader: Any = DataLoader(Keyed(), 2, sampler=Of(keys))
    with (
        Recording(tmp_path, model, torch.optim.SGD(model.parameters())) as recording,
        pytest.raises(DescriptionError, match=r"the loader's sampler gives .*known by their whole numbers"),
    ):
        next(iter(recording.loader(loader)))


def test_a_batch_of_no_examples_is_refused(tmp_path: Path):
    model = nn.Linear(4, 3).double()
    with (
        Recording(tmp_path, model, torch.optim.SGD(model.parameters())) as recording,
        pytest.raises(DescriptionError, match="a batch of no examples"),
        recording.batch([], torch.zeros(0)),
    ):
        pass

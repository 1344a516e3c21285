"""A batch goes to the model's device and dtype, whatever holds its tensors, and stays of its own class."""

import dataclasses
from collections import OrderedDict, UserDict
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.utils.rnn import pack_sequence
from transformers import BatchEncoding
from transformers.modeling_outputs import BaseModelOutput

from stagetrace.errors import DataError
from stagetrace.stages.device import to_device

CPU = torch.device("cpu")


def placed(content: Any, dtype: torch.dtype = torch.float64) -> Any:
    return to_device(content, dtype, CPU)


class Point(NamedTuple):
    x: Tensor
    y: Tensor


@dataclasses.dataclass
class Pair:
    x: Tensor
    y: Tensor
    note: str = "kept"


@dataclasses.dataclass(frozen=True)
class Fixed:
    x: Tensor
    made: list[str] = dataclasses.field(default_factory=list, init=False)

    def __post_init__(self) -> None:
        self.made.append("made")


class Slots:
    __slots__ = ("unset", "x")

    def __init__(self, x: Tensor) -> None:
        self.x = x


class Graph:
    """A class of one's own with a property, a circle, and a `to` that goes to devices alone."""

    def __init__(self, x: Tensor) -> None:
        self.store = {"nodes": [x]}
        self.itself = self

    @property
    def x(self) -> Tensor:
        return self.store["nodes"][0]

    def to(self, device: torch.device) -> "Graph":
        raise AssertionError("it would leave the dtype")


X = torch.ones(2)

HOLDERS: dict[str, tuple[Any, Any]] = {
    "tensor": (X, lambda b: b),
    "dict": ({"x": X}, lambda b: b["x"]),
    "list in a tuple": (([X],), lambda b: b[0][0]),
    "named tuple": (Point(X, X), lambda b: b.x),
    "dataclass": (Pair(X, X), lambda b: b.x),
    "frozen dataclass": (Fixed(X), lambda b: b.x),
    "slots": (Slots(X), lambda b: b.x),
    "own class": (Graph(X), lambda b: b.x),
    "encoding": (BatchEncoding({"x": X}), lambda b: b.x),
    "user's mapping": (UserDict({"x": X}), lambda b: b["x"]),
    "ordered": (OrderedDict(x=X), lambda b: b["x"]),
    "model output": (BaseModelOutput(last_hidden_state=X), lambda b: b.last_hidden_state),
    "packed": (pack_sequence([X, X[:1]]), lambda b: b.data),
    "nested": ([{"deep": Pair(X, X)}], lambda b: b[0]["deep"].y),
    "sparse": (torch.eye(2).to_sparse(), lambda b: b),
    "half": (X.half(), lambda b: b),
    "parameter": (torch.nn.Parameter(X.clone()), lambda b: b),
}


@pytest.mark.parametrize("holder", HOLDERS)
def test_floating_point_tensors_take_the_model_s_dtype_in_any_holder(holder: str):
    content, read = HOLDERS[holder]
    before = read(content).dtype
    batch = placed(content)
    assert read(batch).dtype == torch.float64
    assert read(content).dtype == before, "the caller's own was changed"
    if not isinstance(content, Tensor):
        assert type(batch) is type(content)


@pytest.mark.parametrize("holder", HOLDERS)
def test_what_was_made_in_inference_mode_can_be_differentiated(holder: str):
    with torch.inference_mode():
        content, read = HOLDERS[holder]
        inside = torch.ones(2)
    assert not read(content).is_inference()
    weight = torch.ones(2, requires_grad=True)
    (weight * placed({"x": [inside]}, torch.float32)["x"][0]).sum().backward()
    assert weight.grad is not None


def test_only_what_floats_changes_its_type():
    content = {
        "tokens": torch.tensor([1, 2]),
        "mask": torch.tensor([True, False]),
        "wave": torch.ones(2, dtype=torch.complex64),
        "bytes": torch.ones(2, dtype=torch.uint8),
        "array": np.ones(2, dtype=np.float32),
        "words": ["a", b"b", None, 3, 1.5, torch.Size([2]), torch.float32],
    }
    batch = placed(content)
    kinds = {name: value.dtype for name, value in batch.items() if isinstance(value, Tensor)}
    assert kinds == {
        "tokens": torch.int64,
        "mask": torch.bool,
        "wave": torch.complex128,
        "bytes": torch.uint8,
    }
    assert batch["array"] is content["array"]
    assert batch["words"] == content["words"]
    assert placed(torch.ones(1, dtype=torch.float64), torch.bfloat16).dtype == torch.bfloat16
    assert placed(torch.ones(1, dtype=torch.complex64), torch.bfloat16).dtype == torch.complex64


def test_the_rest_of_an_object_stays():
    pair = placed(Pair(X, torch.tensor([3]), note="mine"))
    assert (pair.note, pair.y.dtype) == ("mine", torch.int64)
    assert placed(Fixed(X)).made == ["made"], "it was made a second time"
    with pytest.raises(AttributeError):
        placed(Slots(X)).unset  # noqa: B018


def test_an_object_without_tensors_to_change_is_the_same_object():
    content = Graph(X.double())
    assert placed(content) is content
    assert placed({"x": content})["x"] is content


def test_sizes_of_packed_sequences_stay_counts():
    packed = placed(pack_sequence([X, X[:1]], enforce_sorted=False))
    padded, lengths = torch.nn.utils.rnn.pad_packed_sequence(packed)
    assert padded.dtype == torch.float64
    assert lengths.tolist() == [2, 1]


class Sealed:
    def __init__(self, x: Tensor) -> None:
        self.x = x

    def __copy__(self) -> "Sealed":
        raise TypeError("one of a kind")


def test_a_class_that_cannot_be_placed_is_named():
    says = r"^the query: a batch of class Sealed holds tensors of another dtype.*float64, cpu.*one of a kind.*collate="
    with pytest.raises(DataError, match=says):
        to_device(Sealed(X), torch.float64, CPU, "the query")
    assert placed(Sealed(X.double())).x.dtype == torch.float64

"""Data that cannot be read, or differ at each read, are refused."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from stagetrace import Query
from stagetrace.errors import DataError
from tests.jobs import Net, examples
from tests.refusals.described import Bad, Noisy, at, refused


class Stream(IterableDataset):
    def __iter__(self):
        return iter(examples(40, 1))


class Picture:
    """What PIL gives: an object that nothing knows how to stack."""


TABLE = [
    Bad("no data", at("pretrain", data=[]), ("'pretrain'", "empty", "at least one"), DataError),
    Bad("no query", at("query", data=[]), ("the query", "empty", "at least one"), DataError),
    Bad(
        "data that change",
        at("finetune", data=Noisy()),
        ("'finetune'", "example 0", "two reads", "without randomness"),
        DataError,
    ),
    Bad(
        "a query that changes",
        at("query", data=Noisy()),
        ("the query", "example 0", "two reads", "without randomness"),
        DataError,
    ),
    Bad(
        "a shuffling loader",
        at("pretrain", data=DataLoader(examples(40, 1), shuffle=True)),
        ("'pretrain'", "DataLoader", "data=loader.dataset"),
    ),
    Bad(
        "a loader in order",
        at("pretrain", data=DataLoader(examples(40, 1))),
        ("'pretrain'", "DataLoader", "data=loader.dataset"),
    ),
    Bad(
        "a loader as a query",
        at("query", data=DataLoader(examples(40, 1))),
        ("the query", "DataLoader", "data=loader.dataset"),
    ),
    Bad("a stream", at("pretrain", data=Stream()), ("'pretrain'", "is a stream (Stream)", "corpora.Stream(")),
    Bad(
        "a generator",
        at("pretrain", data=(x for x in examples(40, 1))),
        ("'pretrain'", "map-style", "or a list", "generator"),
    ),
    Bad("a dict", at("pretrain", data={"x": [1, 2], "y": [0, 1]}), ("'pretrain'", "dict", "pass a list of examples")),
    Bad(
        "pictures",
        at("finetune", data=[(Picture(), 0)] * 3),
        ("'finetune', example 0", "item 0 is a Picture", "give collate="),
        DataError,
    ),
    Bad(
        "ragged lists",
        at("finetune", data=[([1.0] * n, 0) for n in (4, 5, 4)]),
        ("'finetune', example 0", "item 0 is a list of 4 numbers", "torch.tensor(...)", "collate="),
        DataError,
    ),
    Bad("nothing for data", at("pretrain", data=None), ("'pretrain'", "data is None", "list of examples")),
    Bad("a lone query example", at("query", data=examples(40, 2)[3]), ("the query", "[(x, y)]", "TensorDataset(x, y)")),
    Bad(
        "a lone example in a list",
        at("query", data=[*examples(40, 2)[3]]),
        ("the query", "read as 2 examples", "[(x, y)]"),
    ),
    Bad(
        "tensors of all examples",
        at("pretrain", data=examples(40, 1).tensors),
        ("'pretrain'", "float64 [40, 4], int64 [40]", "TensorDataset(x, y)"),
    ),
    Bad("a query of a query", at("query", data=Query(examples(40, 2))), ("the query", "data is a Query", "data set")),
    Bad("a model for data", at("pretrain", data=Net(0)), ("'pretrain'", "data is the module Net", "data set")),
    Bad("a class for data", at("pretrain", data=Noisy), ("'pretrain'", "data is the class Noisy", "instance")),
    Bad(
        "sparse rows",
        at("pretrain", data=TensorDataset(torch.eye(4).to_sparse(), torch.zeros(4))),
        ("'pretrain'", "sparse", "to_dense()"),
    ),
]


@pytest.mark.parametrize("bad", TABLE, ids=lambda bad: bad.what)
def test_a_data_set_is_refused_in_one_line_and_nothing_is_written(bad: Bad, tmp_path: Path):
    refused(bad, tmp_path / "out")


@pytest.mark.parametrize("data", [((1.0, 2.0), (3.0, 4.0)), [torch.zeros(3), torch.ones(3)], [1.0, 2.0]], ids=repr)
def test_a_few_examples_are_no_lone_example(data: Any):
    assert Query(data).data is data

"""A batch that does not fit the model or the objective is refused."""

from pathlib import Path

import pytest
from torch.utils.data import TensorDataset

from stagetrace.errors import DataError
from tests.jobs import examples
from tests.refusals.described import Bad, at, refused

TABLE = [
    Bad(
        "no labels",
        at("query", data=TensorDataset(examples(40, 2).tensors[0])),
        ("the query, examples 0 to 1", "its labels are missing", "(input, label)"),
        DataError,
    ),
    Bad(
        "no labels by name",
        at("query", data=[{"x": x} for x, _ in examples(40, 2)]),
        ("the query, examples 0 to 1", "keys are ['x']", "rename"),
        DataError,
    ),
    Bad(
        "labels by two names",
        at("query", data=[{"x": x, "label": y, "target": 1 - y} for x, y in examples(40, 2)]),
        ("the query, examples 0 to 1", "'label' and 'target'", "keep one"),
        DataError,
    ),
    Bad(
        "names that forward does not have",
        at("pretrain", data=[{"features": x, "mask": x, "label": y} for x, y in examples(40, 1)]),
        ("'pretrain', examples 0 to 1", "Net.forward takes (x)", "inputs are 'features', 'mask'", "rename"),
        DataError,
    ),
    Bad(
        "an input that forward would never see",
        at("pretrain", data=[{"x": x, "weight": x[0], "label": y} for x, y in examples(40, 1)]),
        ("'pretrain', examples 0 to 1", "'weight'", "takes (x)", "leave it out"),
        DataError,
    ),
    Bad(
        "one input too many",
        at("finetune", data=[(x, x, y) for x, y in examples(40, 1)]),
        ("'finetune', examples 0 to 1", "2 inputs", "Net.forward takes (x)", "collate="),
        DataError,
    ),
]


@pytest.mark.parametrize("bad", TABLE, ids=lambda bad: bad.what)
def test_a_batch_is_refused_in_one_line_and_nothing_is_written(bad: Bad, tmp_path: Path):
    refused(bad, tmp_path / "out")

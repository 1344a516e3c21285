"""Stable ids: whose they are, what can serve, and that they are part of what identifies a run."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from torch.utils.data import Subset, TensorDataset

from stagetrace import Chain, Query, Stage, Trace, trace
from stagetrace.errors import DataError, DescriptionError, ResultsError, StagetraceWarning
from stagetrace.objectives import Regression
from stagetrace.results.parts import split
from stagetrace.stages.ids import Ids
from stagetrace.stages.own_ids import ids_of
from stagetrace.tracing import rank

N = 6
NAMES = [f"doc-{index}" for index in range(N)]


def rows() -> list[dict[str, Any]]:
    torch.manual_seed(0)
    return [{"id": name, "x": torch.randn(2), "y": torch.randn(1)} for name in NAMES]


def pairs(some: list[dict[str, Any]]) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.stack([row["x"] for row in some]), torch.stack([row["y"] for row in some])


def stage(data: Any = None, **settings: Any) -> Stage:
    torch.manual_seed(0)
    data = rows() if data is None else data
    return Stage("fit", model=torch.nn.Linear(2, 1), objective=Regression(), data=data, collate=pairs, **settings)


OWN: dict[str, Callable[[], Any]] = {
    "list of dicts": lambda: [{"id": name} for name in NAMES],
    "datasets": lambda: datasets.Dataset.from_dict({"id": NAMES, "text": NAMES}),
    "datasets, picked": lambda: datasets.Dataset.from_dict({"id": [*NAMES, "z"]}).select(range(N)),
    "datasets as tensors": lambda: datasets.Dataset.from_dict({"id": NAMES}).with_format("torch"),
    "subset": lambda: Subset([{"id": "z"}, *({"id": name} for name in NAMES)], range(1, N + 1)),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("kind", OWN)
def test_a_column_named_id_is_taken(kind: str):
    found, notice = ids_of(OWN[kind](), None, "stage 'fit'")
    assert found is not None
    assert list(found) == NAMES
    assert notice is None


@pytest.mark.parametrize("data", [TensorDataset(torch.ones(N, 2)), [(1.0, 2.0)] * N, [{"text": "a"}] * N])
def test_other_data_have_none(data: Any):
    assert ids_of(data, None, "stage 'fit'") == (None, None)


@pytest.mark.parametrize("values", [[1, 2, 1], ["a", None, "b"], [0.5, 1.0, 2.0], ["a", "", "b"]])
def test_a_column_that_cannot_serve_is_passed_over_aloud(values: list[Any]):
    found, notice = ids_of([{"id": value} for value in values], None, "stage 'fit'")
    assert found is None
    assert notice is not None
    assert "indices alone" in notice
    made = stage([{**row, "id": values[place % 3]} for place, row in enumerate(rows())])
    with pytest.warns(StagetraceWarning, match="indices alone"):
        assert trace(Chain(made), Query(rows()[:1], collate=pairs))["fit"].ids is None


@pytest.mark.parametrize(
    ("ids", "error", "message"),
    [
        (["a", "b", "c", "b", "e", "f"], DataError, "examples 1 and 3 have the same id 'b'"),
        (["1", 2, 3, 1, 4, 5], DataError, "examples 0 and 3 have the same id '1'"),
        (["a"], DescriptionError, "one id for each of the 6 examples, got 1"),
        ("nowhere", DataError, "ids='nowhere' names a column, but example 0 has"),
        ([*NAMES[:5], "two\nlines"], DataError, "of one line that is not empty, got .two.*for example 5"),
        ([*NAMES[:5], 2.5], DataError, "got 2.5 for example 5"),
        (7, DescriptionError, "ids must be the name of a column, or a sequence"),
    ],
)
def test_what_cannot_name_examples_is_refused(ids: Any, error: type[Exception], message: str):
    with pytest.raises(error, match=message):
        stage(ids=ids)


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_results_carry_them(reduction: Any, tmp_path: Path):
    query = Query(rows()[:2], collate=pairs, reduction=reduction)
    result = trace(Chain(stage()), query, parts=True, out=tmp_path / "run")
    top = result["fit"].top(3)
    assert top.ids == tuple(NAMES[index] for index in top.indices)
    assert NAMES[top.indices[0]] in str(top)
    assert tuple(top.to_pandas()["id"]) == top.ids
    result.save(tmp_path / "saved")
    for folder in ("run", "saved"):
        kept = Trace.load(tmp_path / folder)["fit"]
        assert kept.ids == Ids(NAMES)
        assert torch.equal(kept.via_head, result["fit"].via_head)  # type: ignore[arg-type]
    with pytest.raises(ResultsError, match=r"stages\.fit\.ids\.sha256"):
        trace(Chain(stage(ids=range(N))), query, parts=True, out=tmp_path / "run")
    parts = [part.ids for part in split(result["fit"])]
    assert parts == [Ids(NAMES)]


def test_rankings_carry_them(tmp_path: Path):
    query = Query(rows()[:2], collate=pairs, reduction="none")
    for _ in range(2):  # computed, then read
        ranking = rank(Chain(stage()), query, top=2, out=tmp_path / "ranks")["fit"]
        top = ranking.top(2, query=1)
        assert top.ids == tuple(NAMES[index] for index in top.indices)


def test_a_million_are_kept_as_one_array():
    some = Ids(range(30_000))
    assert some[29_999] == "29999"
    assert some.position(12_345) == 12_345
    assert Ids.joined([some[:10_000], some[10_000:]]) == some
    assert some.take([7, 5]).positions_in(some).tolist() == [7, 5]
    assert Ids(["7", "x"]).positions_in(some).tolist() == [7, -1]

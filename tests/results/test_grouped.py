"""Scores of groups: sums over whatever bears one name, and the derivative in a weight that a whole group shares."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from stagetrace import Chain, Direct, Query, Stage, trace
from stagetrace.corpora import TokenFile
from stagetrace.errors import DataError, DescriptionError
from stagetrace.results import Scores, TokenScores

VALUES = torch.tensor([[0.5, -2.0, 1.0, 0.25], [1.0, 0.0, -3.0, 0.5]]).double()
GROUPS = [7, "b", 7, "c"]


def test_sums_and_their_order():
    found = Scores("fit", VALUES).grouped(GROUPS)
    assert list(found.names) == ["7", "b", "c"]
    assert found.values.tolist() == [[1.5, -2.0, 0.25], [-2.0, 0.0, 0.5]]
    assert found.counts.tolist() == [2, 1, 1]
    assert torch.equal(found.removal_effect, -found.values / 4)  # of all four examples, not of three groups
    assert found.top(2).ids == ("c", "7")  # means: 7 -0.25, b -1, c 0.375
    assert found.top(1, query=0).ids == ("7",)
    assert found.top(1, harmful=False).removal_effects == (0.25,)
    assert found.to_pandas()["score"].tolist() == [-0.25, -1.0, 0.375]
    single = Scores("fit", VALUES[0]).grouped(np.array([1, 0, 1, 2]))
    assert (list(single.names), single.values.tolist()) == (["1", "0", "2"], [1.5, -2.0, 0.25])


def test_the_sum_is_the_derivative_in_a_weight_of_the_document(tmp_path: Path):
    """Rows of a token file, two a document: the loss of the whole document is given more weight, and solved again."""
    np.arange(24, dtype=np.uint16).tofile(tmp_path / "tokens.bin")
    order = [3, 0, 5, 1, 2, 4]
    rows = TokenFile(tmp_path / "tokens.bin", dtype="uint16", length=4, order=order, documents=[0, 8, 16])
    targets = torch.tensor([1.0, -2.0, 0.5]).double()
    line = torch.nn.Linear(1, 1, bias=False).double()

    def losses(model: torch.nn.Module, batch: dict[str, Any]) -> torch.Tensor:
        x = batch["input_ids"].double().mean(dim=1) / 10
        return (model(x[:, None])[:, 0] - targets[batch["input_ids"][:, 0] // 8]) ** 2

    x = torch.stack([torch.from_numpy(rows[index]["input_ids"]).double().mean() / 10 for index in range(6)])
    y = torch.stack([targets[row // 2] for row in order])

    def solved(weights: torch.Tensor) -> torch.Tensor:
        return (weights * x * y).sum() / (weights * x * x).sum()

    with torch.no_grad():
        line.weight.fill_(float(solved(torch.ones(6).double())))
    stage = Stage("fit", model=line, objective=losses, data=rows)
    query = Query([{"input_ids": torch.tensor([9, 9, 9, 9])}])
    found = trace(Chain(stage), query, solver=Direct(damping=0.0))["fit"].grouped(rows.documents())
    for place, document in enumerate(found.names):
        member = torch.tensor([row // 2 == int(document) for row in order]).double()
        step = 1e-6
        ends = [((solved(1 + 6 * sign * step * member) * 0.9) - targets[1]) ** 2 for sign in (1, -1)]
        assert found.values[place].item() == pytest.approx(float((ends[0] - ends[1]) / (2 * step)), rel=1e-6)


def test_tokens_of_rows_that_hold_several_documents(tmp_path: Path):
    tokens, starts, order = np.arange(24, dtype=np.uint16), [0, 6, 6, 13], [3, 0, 5, 1, 2, 4]
    tokens.tofile(tmp_path / "tokens.bin")
    rows = TokenFile(tmp_path / "tokens.bin", dtype="uint16", length=4, order=order, documents=starts)
    index, position = (torch.from_numpy(each) for each in np.divmod(np.arange(24), 4))
    values = torch.randn(24)
    found = TokenScores("fit", 6, index, position, torch.zeros(24, dtype=torch.long), values, 24)
    said = found.grouped(rows.document_of(index, position))
    held = {int(name): 0.0 for name in said.names}
    for place in range(24):  # the number of a token is its place in the file
        token = int(rows[int(index[place])]["input_ids"][position[place]])
        held[max(number for number, start in enumerate(starts) if start <= token)] += float(values[place])
    assert {int(name): pytest.approx(value) for name, value in zip(said.names, said.values, strict=True)} == held
    assert torch.equal(said.removal_effect, -said.values / 6)
    rest = TokenScores("fit", 6, index, torch.where(index == 5, -1, position), index, values, 24, 0.1)
    with pytest.raises(DescriptionError, match="20 of 24 tokens were kept"):
        rest.grouped(range(24))
    with pytest.raises(DescriptionError, match="example 5 has no token 4"):
        rows.document_of([5], [4])


@pytest.mark.parametrize(
    ("groups", "error", "message"),
    [
        (["a"], DescriptionError, "for each of 4 examples, got 1"),
        (["a", None, "b", "c"], DataError, "a group's name must be a text or a whole number, got None for example 1"),
        (["a", 0.5, "b", "c"], DataError, "got 0.5 for example 1"),
        (
            ["a", "", "b", "c"],
            DataError,
            "a group's name must be a text of one line that is not empty, got '' for example 1",
        ),
        ({0: "a", 1: "a", 2: "b", 3: "b"}, DataError, "a group's name for each example, in their order, .* got a dict"),
        ({"a", "b", "c", "d"}, DataError, "in their order, in a sequence, got a set"),
        ("abcd", DataError, "in their order, in a sequence, got a str"),
    ],
)
def test_what_names_no_group_is_refused(groups: Any, error: type[Exception], message: str):
    with pytest.raises(error, match=message):
        Scores("fit", VALUES).grouped(groups)

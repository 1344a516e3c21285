"""Classes have the names that the objective, the data set or the model has for them."""

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from stagetrace import Chain, Query, Scores, Stage, Trace
from stagetrace.objectives import Classification
from stagetrace.report.collect import collect
from stagetrace.report.item import Reader
from stagetrace.report.preview import Preview


@dataclass(frozen=True)
class Named:
    """An objective with names, as `Classification(names=...)` has them."""

    names: tuple[str, ...]

    def outputs(self, model: nn.Module, batch: Any) -> torch.Tensor:
        return model(batch[0])

    def losses(self, outputs: torch.Tensor, batch: Any) -> torch.Tensor:
        if outputs.shape[1] == 1:
            return nn.functional.softplus((1 - 2 * batch[1]) * outputs[:, 0])
        return nn.functional.cross_entropy(outputs, batch[1], reduction="none")


def previews(objective: Any, outputs: int, config: Any = None, floating: bool = False) -> dict[Any, Preview]:
    """The previews of a stage of three examples of the classes 0, 1, 1, which is its own query."""
    torch.manual_seed(0)
    model = nn.Linear(2, outputs).double()
    nn.init.constant_(model.weight, 0.0)
    nn.init.constant_(model.bias, 0.0)
    with torch.no_grad():
        model.bias[-1] = 2.0
    if config is not None:
        model.config = config
    labels = torch.tensor([0, 1, 1])
    data = TensorDataset(torch.randn(3, 2).double(), labels.double() if floating else labels)
    chain = Chain(Stage("only", model=model, objective=objective, data=data))
    trace = Trace({"only": Scores("only", torch.tensor([1.0, -1.0, 0.5]).double())})
    return collect(trace, chain, Query(data)).by_place()


def test_without_names_classes_are_numbers():
    found = previews(Classification(), 2)
    assert (found["only", 1].label, found[None, 0].label, found[None, 0].prediction) == ("1", "0", "1 (88%)")


@pytest.mark.parametrize("id2label", [{0: "bad", 1: "good"}, {0: "LABEL_0", 1: "LABEL_1"}])
def test_the_models_own_names_are_those_of_its_labels(id2label: dict[int, str]):
    found = previews(Classification(), 2, SimpleNamespace(id2label=id2label))
    bad, good = ("bad", "good") if id2label[0] == "bad" else ("0", "1")
    assert (found["only", 1].label, found["only", 0].label) == (good, bad)
    assert (found[None, 0].label, found[None, 0].prediction) == (bad, f"{good} (88%)")


def test_the_objectives_names_come_before_the_models():
    found = previews(Named(("no", "yes")), 2, SimpleNamespace(id2label={0: "bad", 1: "good"}))
    assert (found["only", 0].label, found["only", 2].label, found[None, 1].label) == ("no", "yes", "yes")


def test_one_logit_speaks_of_two_classes():
    found = previews(Named(("no", "yes")), 1, floating=True)
    assert (found["only", 0].label, found["only", 1].label) == ("no", "yes")
    assert found[None, 0].prediction == "yes (88%)"


def test_several_labels_at_once_are_named():
    rows = [{"x": 1.0, "labels": marks} for marks in ([1, 0, 1], [0, 0, 0], [1.0, 1.0, 0.0], [3, 0, 1], [1, 0])]
    reader = Reader.of(rows, ("a", "b", "c"))
    assert [reader.preview("only", index).label for index in range(5)] == ["a, c", "none", "a, b", "", ""]


def test_a_columns_names_come_before_others():
    class Rows(list[Any]):
        features: Any = None

    rows = Rows([{"label": 1}])
    rows.features = {"label": SimpleNamespace(names=["of the column", "its second"])}
    assert Reader.of(rows, ("a", "b")).preview("only", 0).label == "its second"

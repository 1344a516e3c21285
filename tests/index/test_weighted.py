"""An index of examples that have weights: what is kept of each example is of its gradient times its weight."""

from pathlib import Path
from typing import Any

import pytest
import torch

from stagetrace import Chain, Direct, GaussNewton, Query, Shift, Stage, trace
from stagetrace.errors import ResultsError
from stagetrace.index import Index, build
from stagetrace.objectives import Classification
from tests.jobs import Net, examples

SETTINGS: dict[str, Any] = {"curvature": GaussNewton(), "solver": Direct(0.01, Shift)}


def weighed(weights: list[float]) -> Chain:
    return Chain(Stage("fit", model=Net(0), objective=Classification(), data=examples(40, 0), weights=weights))


def test_an_index_is_refused_where_the_weight_of_any_example_differs(tmp_path: Path) -> None:
    weights, query = [1.0, 2.0, 0.0, 100.0] * 10, Query(examples(5, 1), reduction="none")
    chain = weighed(weights)
    built = build(chain, query, tmp_path / "index", numbers=8, **SETTINGS)
    found, scores = built.search(query, top=5, rescore=40, **SETTINGS)["fit"].ranking, trace(chain, query, **SETTINGS)
    best = scores["fit"].values.topk(5, dim=1)
    assert torch.equal(found.harmful, best.indices)
    torch.testing.assert_close(found.harmful_scores, best.values)

    Index.open(tmp_path / "index", weighed([3 * weight for weight in weights]))  # which are the same over their mean
    for place in (2, 7, 12, 17, 22, 27):
        changed = [50.0 if place == at else weight for at, weight in enumerate(weights)]
        with pytest.raises(ResultsError, match="the weights of its examples differ"):
            Index.open(tmp_path / "index", weighed(changed))

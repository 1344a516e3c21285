"""EK-FAC beside that of curvlinops, which shares no code with ours: entry by entry, in float64.

curvlinops asks for other versions of packages than the library is tested with, so it lives in an environment of its
own, and this file is skipped where it is not installed:

    python -m venv ENV && ENV/bin/pip install -e . pytest hypothesis curvlinops-for-pytorch
    ENV/bin/python -m pytest tests/curvature/test_beside_curvlinops.py
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from stagetrace import EKFAC, Stage
from stagetrace.objectives import Classification, Regression
from stagetrace.stages.bound import BoundStage

curvlinops = pytest.importorskip("curvlinops")

N = 30


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3, bias=False), nn.Tanh(), nn.Linear(3, 3))


def convolutional() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 3, 3, stride=2, padding=1),
        nn.Tanh(),
        nn.Conv2d(3, 4, 2, dilation=2, padding=(1, 0)),
        nn.Tanh(),
        nn.Flatten(),
        nn.LazyLinear(3),
    )


CASES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], str]] = {
    "classes": (mlp, (4,), "classes"),
    "squared": (mlp, (4,), "squared"),
    "convolutions": (convolutional, (2, 7, 6), "classes"),
    "convolutions, squared": (convolutional, (2, 7, 6), "squared"),
}


def theirs(model: nn.Module, x: Tensor, y: Tensor, loss: str) -> Tensor:
    """Their matrix: the expectation over labels ("type-2"), weight and bias together, positions added up."""
    given: dict[str, Any] = {"fisher_type": "type-2", "separate_weight_and_bias": False}
    function = nn.CrossEntropyLoss() if loss == "classes" else nn.MSELoss()
    data = [(x[:11], y[:11]), (x[11:], y[11:])]  # an uneven batch is no other mean
    operator = curvlinops.EKFACLinearOperator(model, function, list(model.parameters()), data, **given)
    return operator @ torch.eye(sum(p.numel() for p in model.parameters()), dtype=x.dtype)


@pytest.mark.parametrize("case", CASES)
def test_the_matrix_is_theirs(case: str) -> None:
    make, shape, loss = CASES[case]
    torch.manual_seed(0)
    x = torch.randn(N, *shape, dtype=torch.float64)
    y = torch.randint(0, 3, (N,)) if loss == "classes" else torch.randn(N, 3, dtype=torch.float64)
    model = make().double()
    model(x)
    objective = Classification() if loss == "classes" else Regression()
    bound = BoundStage.of(Stage("only", model=model, objective=objective, data=TensorDataset(x, y)), None)
    found = EKFAC(exact=0).operator(bound).to_dense()
    expected = theirs(model, x, y, loss)
    torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-10)

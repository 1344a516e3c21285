"""The chain that `tests/index/format-1` is an index of: every number in it is exact in float32, on every machine.

`python -m tests.index.old DIR` builds an index of it. The committed folder was built by the release that brought format
1, and stays as it is: a later release must open it and answer.
"""

import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from stagetrace import Chain, Frozen, Query, Stage
from stagetrace.objectives import Regression

FOLDER = Path(__file__).parent / "format-1"


def numbers(*shape: int, start: int) -> Tensor:
    """Multiples of 1/8 between -1.5 and 1.5, in a fixed order that looks like none."""
    count = torch.Size(shape).numel()
    return (((torch.arange(count) + start) * 37 % 25) - 12).float().div(8).reshape(shape)


def chain() -> Chain:
    """Two linear layers, then one kept and a new head."""
    first = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2))
    for place, parameter in enumerate(first.parameters()):
        parameter.data = numbers(*parameter.shape, start=5 * place)
    second = nn.Sequential(first[0], nn.Linear(2, 1))
    for place, parameter in enumerate(second[1].parameters()):
        parameter.data = numbers(*parameter.shape, start=3 + 7 * place)
    old = TensorDataset(numbers(40, 3, start=1), numbers(40, 2, start=11))
    new = TensorDataset(numbers(30, 3, start=2), numbers(30, 1, start=13))
    settled: dict[str, Any] = {"objective": Regression(), "weight_decay": 0.5}
    return Chain(
        Stage("pretrain", model=first, data=old, **settled),
        Stage("finetune", model=second, data=new, link=Frozen("0"), **settled),
    )


def query() -> Query:
    """Four examples, the mean of their losses."""
    return Query(TensorDataset(numbers(4, 3, start=8), numbers(4, 1, start=17)))


if __name__ == "__main__":
    from stagetrace.index import build

    build(chain(), query(), sys.argv[1], numbers=6, curvature="gauss-newton", solver="direct")

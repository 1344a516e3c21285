"""A sound run, ways to break it, and how a refusal is judged: in one line that says where and what to do."""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, TensorDataset

from stagetrace import Chain, Frozen, GaussNewton, Query, Stage, Trace, trace
from stagetrace.errors import DescriptionError
from stagetrace.objectives import Classification
from tests.jobs import Net, after, examples


class Described:
    """Arguments of a sound run: "pretrain", then "finetune" with the same embedding, then a query; all changeable."""

    def __init__(self) -> None:
        link, model = Frozen("embedding"), Net(0)
        self.pretrain: dict[str, Any] = {"model": model, "objective": Classification(), "data": examples(40, 1)}
        self.finetune: dict[str, Any] = self.pretrain | {"model": after(model, link, 1), "link": link}
        self.names = ("pretrain", "finetune")
        self.query: dict[str, Any] = {"data": examples(40, 2)}
        self.settings: dict[str, Any] = {"curvature": GaussNewton()}

    def broken(self, change: Callable[["Described"], None]) -> "Described":
        change(self)
        return self

    def trace(self, out: Path | None = None) -> Trace:
        first, second = self.names
        chain = Chain(Stage(first, **self.pretrain), Stage(second, **self.finetune))
        return trace(chain, Query(**self.query), out=out, **self.settings)


def at(path: str, **changes: Any) -> Callable[[Described], None]:
    """Change arguments of "pretrain", "finetune", "query" or "settings"."""
    return lambda described: getattr(described, path).update(changes)


def model_of(path: str, change: Callable[[nn.Module], object]) -> Callable[[Described], None]:
    """Change a stage's model, and leave the other's alone."""

    def broken(described: Described) -> None:
        arguments = getattr(described, path)
        arguments["model"] = deepcopy(arguments["model"])
        change(arguments["model"])

    return broken


def named(*names: str) -> Callable[[Described], None]:
    return lambda described: setattr(described, "names", names)


def both(*changes: Callable[[Described], None]) -> Callable[[Described], None]:
    def all_of_them(described: Described) -> None:
        for change in changes:
            change(described)

    return all_of_them


class Noisy(Dataset):
    """The same label and another input at every read."""

    def __len__(self) -> int:
        return 40

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return torch.rand(4, dtype=torch.float64), 0


def spoilt(n: int, at: int, value: float) -> TensorDataset:
    """Examples of which one has an input that makes its loss NaN or infinite."""
    data = examples(n, 1)
    data.tensors[0][at] = value
    return data


def sound(model: nn.Module, batch: Any) -> Tensor:
    return nn.functional.cross_entropy(model(batch[0]), batch[1], reduction="none")


@dataclass(frozen=True)
class Bad:
    """Something wrong, and words that its message must hold: where it is, and what to do."""

    what: str
    broken: Callable[[Described], None]
    words: tuple[str, ...]
    error: type[Exception] = DescriptionError


NEITHER_NAN = "remove the example or fix its data"


def refused(bad: Bad, out: Path) -> None:
    """In one line that holds the words, before anything is written."""
    with pytest.raises(bad.error) as caught:
        Described().broken(bad.broken).trace(out)
    message = str(caught.value)
    assert "\n" not in message
    assert [word for word in bad.words if word not in message] == [], message
    assert not out.exists()

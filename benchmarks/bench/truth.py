"""What scores should foresee: the network trained on from its weights without a group of examples, and with all.

Groups are drawn by the seed, before any score is looked at. A training is `STEPS` steps of Adam at 1e-4 from the
trained weights; that without a group takes the same batches without the group's members. Every order of the batches
has its own control, so a truth is a difference within an order. The mean over orders is compared with scores; how far
the orders agree bounds what any score can reach.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import final

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from benchmarks.rivals.given import Given

GROUPS, SHARE, ORDERS, STEPS, BATCH, RATE = 40, 0.1, 3, 100, 512, 1e-4
FEW_GROUPS, FEW_STEPS = 6, 5
SINGLE = 100
"""Test examples whose own losses are kept beside the mean over all."""
LEAST = 2


@final
@dataclass(frozen=True, eq=False)
class Truth:
    """members `[groups, examples]` of 0 and 1; changes `[orders, groups, 1 + singles]` of the mean loss and each."""

    members: Tensor
    changes: Tensor

    @property
    def mean(self) -> Tensor:
        """Over orders, `[groups, 1 + singles]`."""
        return self.changes.mean(dim=0)

    def reliability(self) -> dict[str, float]:
        """Of the mean loss: the orders' mean correlation, and the root of the reliability of their mean.

        The second, by the Spearman-Brown formula, is what a perfect score would correlate by.
        """
        one = self.changes[:, :, 0]
        across = torch.corrcoef(one)
        k = len(one)
        r = float((across.sum() - across.diagonal().sum()) / (k * (k - 1)))
        return {"r of two orders": r, "ceiling": max(0.0, k * r / (1 + (k - 1) * r)) ** 0.5}


def truth(given: Given, path: Path, quick: bool, say: Callable[[str], None]) -> Truth:
    """Made now, or as it was kept."""
    if not path.exists():
        groups, steps, orders = (FEW_GROUPS, FEW_STEPS, LEAST) if quick else (GROUPS, STEPS, ORDERS)
        total = len(given.train)
        generator = torch.Generator().manual_seed(given.settings.seed + 1)
        members = torch.zeros(groups, total, dtype=torch.bool)
        for row in members:
            row[torch.randperm(total, generator=generator)[: round(SHARE * total)]] = True
        changes: list[Tensor] = []
        for order in range(orders):
            control = _losses(given, None, order, steps)
            changes.append(torch.stack([_losses(given, row, order, steps) - control for row in members]))
            say(f"truth: order {order + 1} of {orders}, {groups} groups left out")
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file({"members": members, "changes": torch.stack(changes)}, path)
    kept = load_file(path)
    return Truth(kept["members"], kept["changes"])


def _losses(given: Given, left_out: Tensor | None, order: int, steps: int) -> Tensor:
    """The mean loss of all test examples and those of the first, float64."""
    model = copy.deepcopy(given.model)
    optimiser = torch.optim.Adam(model.parameters(), lr=RATE)
    inputs, labels = given.train.tensors
    generator = torch.Generator().manual_seed(1000 + order)
    for step in range(steps):
        if step % (-(-len(labels) // BATCH)) == 0:
            batches = torch.randperm(len(labels), generator=generator).split(BATCH)
        batch = batches[step % len(batches)]  # pyright: ignore[reportPossiblyUnboundVariable]
        if left_out is not None:
            batch = batch[~left_out[batch]]
        optimiser.zero_grad()
        F.cross_entropy(model(inputs[batch]), labels[batch]).backward()
        optimiser.step()
    each = _each(model, *given.tests.tensors)
    return torch.cat([each.mean()[None], each[:SINGLE]])


@torch.no_grad()
def _each(model: nn.Module, inputs: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(model(inputs), labels, reduction="none").double()

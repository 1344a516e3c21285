"""The tangent rules of forward mode that are written anew, against `torch.func.jvp`."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import jvp

from stagetrace.stages.tangent import directional

GENERATOR = torch.Generator().manual_seed(0)


def drawn(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=GENERATOR)


LABELS = torch.tensor([3, -100, 0, 5, -100, 2])


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"ignore_index": 5},
        {"label_smoothing": 0.1},
        {"weight": torch.arange(1.0, 8.0).double()},
        {"reduction": "mean"},
    ],
    ids=str,
)
def test_cross_entropies(options: dict[str, Any]):
    z, dz = drawn(6, 7), drawn(6, 7)
    z[1] = 1e4 * torch.arange(7)  # at an ignored label nothing may overflow into the result
    labels = LABELS if "ignore_index" not in options else LABELS.clamp_min(0)

    def losses(logits: Tensor) -> Tensor:
        given: dict[str, Any] = {"reduction": "none"} | options
        return F.cross_entropy(logits, labels, **given)

    found = directional(lambda at: losses(at["z"]), {"z": z}, {"z": dz})
    for one, other in zip(found, jvp(losses, (z,), (dz,)), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


def test_layers_with_and_without_a_tangent_in_their_input():
    x, images, target = drawn(4, 3), drawn(4, 2, 5, 5), torch.tensor([1, 0, 2, 1])
    at = {"w": drawn(3, 3), "b": drawn(3), "c": drawn(3, 2, 2, 2), "d": drawn(3)}
    along = {name: drawn(*value.shape) for name, value in at.items()}

    def losses(p: dict[str, Tensor]) -> Tensor:
        wide = F.conv2d(images, p["c"], p["d"], stride=2).tanh().mean(dim=(2, 3))
        return F.cross_entropy(F.linear(F.linear(x, p["w"], p["b"]) + wide, p["w"]), target, reduction="none")

    found, expected = directional(losses, at, along), jvp(losses, (at,), (along,))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)

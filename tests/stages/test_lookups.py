"""Lookups made plain: the library's own bag against PyTorch's kernel, and its derivatives against differences."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from stagetrace.errors import DescriptionError
from stagetrace.stages.differentiable_lookups import replace_lookups

ROWS, WIDTH = 6, 3
PLANE = torch.tensor([[1, 2, 2, 0], [5, 0, 0, 0], [0, 0, 0, 0], [3, 1, 4, 5]])
FLAT, STARTS = torch.tensor([3, 0, 1, 1, 5, 0, 2, 4]), torch.tensor([0, 2, 2, 5])  # the second bag is empty
MODES = ("sum", "mean", "max")
PADDINGS = (None, 0)


def bag(mode: str, **settings: Any) -> nn.EmbeddingBag:
    generator = torch.Generator().manual_seed(0)
    table = torch.randn(ROWS, WIDTH, generator=generator, dtype=torch.float64)
    made = nn.EmbeddingBag(ROWS, WIDTH, mode=mode, dtype=torch.float64, **settings)
    with torch.no_grad():
        made.weight.copy_(table)
    return made


def plain(mode: str, **settings: Any) -> nn.Module:
    return replace_lookups(bag(mode, **settings), "here")


@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("mode", MODES)
def test_a_bag_equals_pytorchs(mode: str, padding: int | None):
    """Rows of equal length; bags by their first places, one of them empty; the same with the last place told."""
    theirs, ours = bag(mode, padding_idx=padding), plain(mode, padding_idx=padding)
    torch.testing.assert_close(ours(PLANE), theirs(PLANE))
    torch.testing.assert_close(ours(FLAT, STARTS), theirs(FLAT, STARTS))
    ends = {"include_last_offset": True, "padding_idx": padding}
    closed = torch.cat([STARTS, torch.tensor([len(FLAT)])])
    torch.testing.assert_close(plain(mode, **ends)(FLAT, closed), theirs(FLAT, STARTS))


def test_a_bags_own_weights_count():
    theirs, ours = bag("sum", padding_idx=0), plain("sum", padding_idx=0)
    weights = torch.linspace(-1, 2, PLANE.numel(), dtype=torch.float64).view_as(PLANE)
    torch.testing.assert_close(
        ours(PLANE, per_sample_weights=weights), theirs(PLANE, per_sample_weights=weights.clone())
    )
    flat = torch.linspace(1, 3, len(FLAT), dtype=torch.float64)
    torch.testing.assert_close(ours(FLAT, STARTS, flat), theirs(FLAT, STARTS, flat.clone()))


@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("mode", MODES)
def test_a_bags_gradient_is_pytorchs(mode: str, padding: int | None):
    """By reverse mode, which PyTorch's kernel has; the padding's vector gets none."""
    ways = ((PLANE,), (FLAT, STARTS))
    for where in ways:
        found = []
        for module in (bag(mode, padding_idx=padding), plain(mode, padding_idx=padding)):
            [gradient] = torch.autograd.grad(module(*where).square().sum(), list(module.parameters()))
            found.append(gradient)
        torch.testing.assert_close(found[1], found[0])


@pytest.mark.parametrize(
    ("mode", "where"), [(m, w) for m in MODES for w in ("plane", "flat") if (m, w) != ("max", "flat")]
)
def test_a_plain_bag_has_forward_mode_and_second_derivatives(mode: str, where: str):
    """All but a maximum over bags by offsets, which stays PyTorch's kernel."""
    rows: Any = (PLANE,) if where == "plane" else (FLAT, STARTS)
    model = plain(mode, padding_idx=0)

    def loss(table: Tensor) -> Tensor:
        return torch.func.functional_call(model, {"weight": table}, rows).pow(3).sum()

    table = model.get_parameter("weight").detach()
    along = torch.ones_like(table)
    gradient = torch.func.grad(loss)(table)
    slope = torch.func.jvp(loss, (table,), (along,))[1]
    torch.testing.assert_close(slope, (gradient * along).sum())
    step = 1e-4
    product = torch.func.jvp(torch.func.grad(loss), (table,), (along,))[1]
    change = torch.func.grad(loss)(table + step * along) - torch.func.grad(loss)(table - step * along)
    torch.testing.assert_close(product, change / (2 * step), rtol=1e-6, atol=1e-6)


def test_a_table_may_exceed_its_norm_by_rounding_and_no_more():
    for factor in (0.5, 1.0, 1 + 1e-5):
        with torch.no_grad():
            table = nn.Embedding(ROWS, WIDTH, max_norm=2.0)
            table.weight.copy_(torch.eye(ROWS, WIDTH) * 2.0 * factor)
        assert replace_lookups(table, "here").max_norm is None
    with torch.no_grad():
        table = nn.Embedding(ROWS, WIDTH, max_norm=2.0)
        table.weight.copy_(torch.eye(ROWS, WIDTH) * 2.002)
    with pytest.raises(DescriptionError, match=r"max_norm=2, but a row of norm 2\.002"):
        replace_lookups(table, "here")

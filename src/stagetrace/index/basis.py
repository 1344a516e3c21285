"""The directions that an index keeps of every gradient: the principal components of some gradients of the stage.

The examples are drawn by the seed, without replacement, with weights sqrt(loss). Those that a model fits badly have
large gradients and are found at the ends of rankings; drawn alike, most examples of a fitted model have gradients near
zero and say little about these. Drawing by sqrt(loss) needs one forward pass over the examples.

With the drawn gradients as the columns of A `[P, d]` and `A'A = U S U'`, the basis is `A U_r S_r^{-1/2}`: the
directions in which the drawn gradients have the largest sum of squares, not centred. Eigenvalues that are rounding are
left out; the columns that go with small ones are not quite orthogonal, and made so by a QR decomposition.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from stagetrace.errors import DataError
from stagetrace.index.gradients import ExampleGradients
from stagetrace.progress import Advance
from stagetrace.stages.risk import Risk, check_finite

__all__ = ["DRAWN", "FEWEST", "NUMBERS", "draw", "losses_of", "principal", "room"]

DRAWN = 2048
"""Gradients that a basis is made of."""

NUMBERS = 996
"""Numbers that are kept of an example: in one byte each, with a scale of four bytes, 1,000 bytes."""

FEWEST = 32
"""Gradients below which there is no basis worth the name."""

ROUNDING = 1e-12
"""Over the largest eigenvalue: what is below is the gradients' own rounding."""

BLOCK = 2**14
"""Rows of the gradients that are multiplied at once."""


def losses_of(risk: Risk, advance: Advance) -> Tensor:
    """Every example's loss, float64 `[n]` on the CPU.

    Raises:
        DataError: a loss is not finite; the example is named.
    """
    found: list[Tensor] = []
    with torch.no_grad():
        for batch in risk.read(risk.examples.batch_indices()):
            losses = risk.losses(risk.trained_values, risk.inherited_values, batch)
            check_finite(losses, batch.indices, risk.where)
            found.append(losses.double().cpu())
            advance(len(batch))
    return torch.cat(found)


def draw(losses: Tensor, count: int, seed: int) -> list[int]:
    """`count` examples without replacement, with weights sqrt(loss), ascending: the same for the same seed.

    The largest of `log(u_i) / w_i`, u_i uniform on (0, 1) (Efraimidis and Spirakis 2006). A loss below 0 counts as 0;
    where all do, examples are drawn alike.

    Example:
        >>> draw(torch.tensor([0.0, 4.0, 0.0, 9.0]).double(), 2, seed=0)
        [1, 3]
    """
    weights = losses.clamp_min(0).sqrt()
    largest = float(weights.max())
    weights = weights.clamp_min(1e-9 * largest) if largest > 0 else torch.ones_like(weights)
    uniform = torch.rand(len(losses), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    keys = uniform.clamp_min(1e-300).log() / weights
    return sorted(keys.topk(min(count, len(losses))).indices.tolist())


def room(size: int, itemsize: int, memory: int) -> int:
    """How many gradients of that size a basis can be made of: they are held twice."""
    return memory // (2 * size * itemsize)


def principal(gradients: ExampleGradients, drawn: Sequence[int], numbers: int) -> Tensor:
    """The basis `[P, r]` of the drawn examples' gradients, `r <= numbers`, the largest component first.

    Raises:
        DataError: all are zero, or a loss or gradient is not finite.
    """
    columns = gradients.vectors(drawn)
    blocks = columns.split(BLOCK)
    gram = torch.zeros(len(drawn), len(drawn), dtype=torch.float64, device=columns.device)
    for block in blocks:  # in double precision: small components matter, since an adjoint is large along them
        gram.addmm_(block.mT.double(), block.double())
    values, vectors = torch.linalg.eigh(gram)
    if float(values[-1]) <= 0:
        raise DataError(
            f"{gradients.risk.where}: the gradients of all {len(drawn):,} drawn examples are zero, so there is nothing "
            "to index: the loss does not depend on what the stage trained, or every example is fitted with zero loss"
        )
    kept = int((values > ROUNDING * values[-1]).sum().clamp(max=numbers))
    values, vectors = values[-kept:].flip(0), vectors[:, -kept:].flip(1)
    turn = (vectors / values.sqrt()).to(columns.dtype)
    for block in blocks:  # in its place: there is no room for both
        block[:, :kept] = block @ turn
    return torch.linalg.qr(columns[:, :kept]).Q.contiguous()

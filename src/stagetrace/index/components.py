"""The store of principal components: coordinates in a basis of drawn gradients, the same for every example."""

from collections.abc import Mapping, Sequence
from typing import Any, final

import torch
from torch import Tensor

from stagetrace.errors import refuse
from stagetrace.index.basis import FEWEST, draw, losses_of, principal, room
from stagetrace.index.codes import Kind, Products, bytes_each, encode, near
from stagetrace.index.gradients import ExampleGradients
from stagetrace.index.store import Encoder, Held, Scorer
from stagetrace.progress import Progress
from stagetrace.stages.bound import BoundStage
from stagetrace.taps.gradients import wide

__all__ = ["Components", "drawn_count", "fit_components"]


@final
class Components:
    """A store by a basis `[P, r]`; tensors: of the basis' file, `basis` and `drawn`."""

    def __init__(self, gradients: ExampleGradients, tensors: Held) -> None:
        self._gradients, self.basis = gradients, tensors["basis"]
        self.drawn: Sequence[int] = tensors["drawn"].tolist()
        self.numbers, self.words = self.basis.shape[1], 0

    def encoder(self, kind: Kind, adjoints: Tensor) -> Encoder:
        columns = self._gradients.columns(torch.cat([self.basis, adjoints.to(self.basis)], dim=1))

        def encoded(indices: Sequence[int]) -> tuple[dict[str, Tensor], Tensor]:
            products = torch.cat([each for _, _, each in self._gradients.products(indices, columns)])
            codes, scales = encode(products[:, : self.numbers], kind)
            return {"codes": codes, "scales": scales}, products[:, self.numbers :]

        return encoded

    def scorer(self, adjoints: Tensor) -> Scorer:
        products = Products(self.basis.mT @ adjoints.to(self.basis))
        return lambda held: products.scores(held["codes"], held["scales"])

    def agrees(self, held: Held, place: int, fresh: Held) -> bool:
        return near(held["codes"][place], held["scales"][place], fresh["codes"][0])

    def bytes_each(self, kind: Kind) -> int:
        return bytes_each(self.numbers, kind)

    def crowded(self, held: Held) -> int:
        del held
        return 0

    def notes(self, bound: BoundStage, settings: Mapping[str, Any], crowded: int) -> list[str]:
        del crowded
        _, notes = drawn_count(bound, settings)
        all_drawn = len(self.drawn) == min(settings["drawn"], len(bound.risk.examples))
        if self.numbers < settings["numbers"] and all_drawn:
            notes.append(f"the gradients span {self.numbers:,} directions beyond rounding, so no more are kept")
        return notes


def fit_components(
    bound: BoundStage, gradients: ExampleGradients, settings: Mapping[str, Any], progress: Progress
) -> dict[str, Tensor]:
    """The basis of gradients that are drawn by the square root of the loss, and which these are.

    Raises:
        DataError: all are zero, or a loss or gradient is not finite.
    """
    count, _ = drawn_count(bound, settings)
    with progress.task(f"losses of {bound.stage.where}", len(bound.risk.examples), "examples") as advance:
        losses = losses_of(bound.risk, advance)
    drawn = draw(losses, count, settings["seed"])
    with progress.task(f"basis of {bound.stage.where}", 1, "bases") as advance:
        basis = principal(gradients, drawn, settings["numbers"])
        advance(1)
    return {"basis": basis.float(), "drawn": torch.tensor(drawn)}


def drawn_count(bound: BoundStage, settings: Mapping[str, Any]) -> tuple[int, list[str]]:
    """How many gradients the basis is made of, and what to say where they are fewer than was asked for.

    Raises:
        DescriptionError: they would be too few.
    """
    wanted = min(settings["drawn"], len(bound.risk.examples))
    itemsize = wide(torch.empty(0, dtype=bound.trained.dtype)).element_size()
    fits = room(bound.trained.size, itemsize, settings["memory"])
    if fits >= wanted:
        return wanted, []
    if fits < FEWEST:
        least = 2 * FEWEST * itemsize * bound.trained.size / 2**30
        refuse(
            f"{bound.stage.where} has {bound.trained.size:,} parameters: a basis of {FEWEST} gradients takes "
            f"{least:.1f} GiB, and memory is {settings['memory'] / 2**30:.1f} GiB; give more (--memory), or score "
            "instead (stagetrace score)"
        )
    return fits, [
        f"the basis is made of {fits:,} gradients, not of {wanted:,}, which do not fit in the memory that was given; "
        "more may rank better"
    ]

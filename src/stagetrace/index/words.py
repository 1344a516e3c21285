"""The store of words: for models that look their words up in a table, where gradients are sparse.

Half of the numbers are EK-FAC's coordinates of everything but the table, those of the largest eigenvalues. The other
half of the bytes holds, for each word of the example, its number and its row of the table's gradient in the leading
directions of EK-FAC's block; a head that shares the table adds its part to the row. The other rows are left out: of a
table that is only looked up they are zero, of one that the head shares they are small and many.

Bytes of an example at most, whatever its length: `numbers + 4`, as principal components take.

    coordinates c = numbers // 2,   scales 4 + 4,   end of its words 4,   words: the rest (`rows.py`)

Source: EK-FAC's basis as of George et al. (2018); which store, by `benchmarks/index_texts.py`.
"""

from collections.abc import Mapping, Sequence
from typing import Any, final

import torch
from torch import Tensor

from stagetrace.curvature.ekfac import EKFAC, EKFACOperator
from stagetrace.curvature.ekfac.blocks import Block
from stagetrace.curvature.operator import SumOperator
from stagetrace.errors import DescriptionError, refuse
from stagetrace.index.codes import Kind, Products, bytes_each, encode, near
from stagetrace.index.corners import leading, read_corners, tensors_of
from stagetrace.index.gradients import ExampleGradients
from stagetrace.index.rows import Room, packed, row_of, row_scores
from stagetrace.index.store import Encoder, Held, Scorer
from stagetrace.index.table import SMALLEST
from stagetrace.progress import Progress
from stagetrace.stages.bound import BoundStage

__all__ = ["FEWEST_NUMBERS", "Words", "fit_words", "unfit"]

FEWEST_NUMBERS = 64
"""Numbers below which there is no room for words."""

HEADER = 8
"""Bytes of an example's second scale and of where its words end; the first scale is not among the numbers."""


@final
class Words:
    """A store by words; tensors: of the basis' file, as `fit_words` gives them."""

    def __init__(self, gradients: ExampleGradients, tensors: Held) -> None:
        device = gradients.risk.trained.device
        self._gradients, self._table = gradients, int(tensors["table"])
        self._directions = tensors["directions"].to(device)
        self._corners = read_corners(tensors, device)
        lines = gradients.layouts[self._table].shape[0]
        self.room = Room(int(tensors["room"]), lines, self._directions.shape[1])
        self.drawn: Sequence[int] = tensors["drawn"].tolist()
        self.numbers, self.words = sum(map(len, self._corners.values())), self.room.most

    def encoder(self, kind: Kind, adjoints: Tensor) -> Encoder:
        columns = self._gradients.columns(adjoints)

        def encoded(indices: Sequence[int]) -> tuple[dict[str, Tensor], Tensor]:
            elsewhere, products, rows = list[Tensor](), list[Tensor](), list[tuple[Tensor, Tensor]]()
            for some, pieces in self._gradients.pieces(indices, self._table):
                product, own = torch.zeros(len(some), columns.count), dict[int, Tensor]()
                product = product.to(self._directions.device, self._gradients.dtype)
                for piece in pieces:
                    product[piece.part] += piece.rows @ columns.parts[piece.number]
                    if piece.number == self._table:
                        rows += self._rows(piece.rows, piece.words[piece.part])
                    elif piece.number in self._corners:
                        corner = self._corners[piece.number]
                        into = own.setdefault(piece.number, product.new_zeros(len(some), len(corner)))
                        into[piece.part] = corner.of(piece.rows)
                elsewhere.append(torch.cat([own[number] for number in self._corners], dim=1))
                products.append(product)
            codes, scales = encode(torch.cat(elsewhere), kind)
            kept = {"codes": codes, "scales": scales, **packed(rows, self.room, kind)}
            return kept, torch.cat(products)

        return encoded

    def _rows(self, gradients: Tensor, words: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
        """Of each example its words, and their rows in the directions."""
        matrices = gradients.reshape(len(gradients), self.room.lines, -1)
        directions = self._directions.to(matrices)
        return [(own, each[own] @ directions) for own, each in zip(words, matrices, strict=True)]

    def scorer(self, adjoints: Tensor) -> Scorer:
        layouts = self._gradients.layouts
        coordinates = [
            corner.of(layouts[number].gather(adjoints).flatten(0, 1).mT) for number, corner in self._corners.items()
        ]
        products = Products(torch.cat(coordinates, dim=1).mT)
        table = layouts[self._table].gather(adjoints).permute(2, 0, 1)
        rows = (table @ self._directions.to(table)).float().cpu()

        def scores(held: Held) -> Tensor:
            return products.scores(held["codes"], held["scales"]) + row_scores(held, self.room, rows)

        return scores

    def agrees(self, held: Held, place: int, fresh: Held) -> bool:
        words, codes, scale = row_of(held, place, self.room)
        others, values, _ = row_of(fresh, 0, self.room)
        # of more words than there is room for the last ones may be others, by rounding
        there, here = torch.isin(words, others), torch.isin(others, words)
        alike = words.shape == others.shape and 2 * int(there.sum()) >= len(words)
        return (
            alike
            and near(codes[there].flatten(), scale, values[here].flatten())
            and near(held["codes"][place], held["scales"][place], fresh["codes"][0])
        )

    def bytes_each(self, kind: Kind) -> int:
        return bytes_each(self.numbers, kind) + HEADER + self.room.taken(kind)

    def crowded(self, held: Held) -> int:
        return int((held["ends"].diff(prepend=held["ends"].new_zeros(1)) == self.words).sum())

    def notes(self, bound: BoundStage, settings: Mapping[str, Any], crowded: int) -> list[str]:
        del settings
        if not crowded:
            return []
        return [
            f"{crowded:,} of {len(bound.risk.examples):,} examples have as many words as there is room for "
            f"({self.words:,}), or more; of these only the largest rows are kept, and more numbers may rank better"
        ]


def unfit(bound: BoundStage, gradients: ExampleGradients, numbers: int) -> str | None:
    """Why a stage's examples cannot be kept by words, and what to type; None where they can."""
    where, instead = bound.stage.where, "type store='components' (--store components)"
    if numbers < FEWEST_NUMBERS:
        return (
            f"{where}: a store of words takes {FEWEST_NUMBERS} numbers or more, got {numbers}; give more, or {instead}"
        )
    if gradients.table is None:
        return (
            f"{where}: a store of words needs sequences of words that are looked up in a trained nn.Embedding of more "
            f"than {SMALLEST} entries, several in each example, and this model has none; {instead}"
        )
    try:
        EKFAC().operator(bound)
    except DescriptionError as cause:
        return f"{where}: a store of words needs the fit of EKFAC, which is not to be had ({cause}); {instead}"
    return None


def fit_words(
    bound: BoundStage, gradients: ExampleGradients, settings: Mapping[str, Any], progress: Progress
) -> dict[str, Tensor]:
    """EK-FAC's leading directions of the table and coordinates elsewhere; on as many examples as EKFAC takes."""
    count = min(settings["drawn"], len(EKFAC().indices(bound)))
    choice = EKFAC(count, seed=settings["seed"], memory=settings["memory"])
    blocks = _blocks(choice, bound, progress)
    assert gradients.table is not None
    by_names = {block.layout.names: block for block in blocks}
    numbered = {number: by_names[layout.names] for number, layout in enumerate(gradients.layouts)}
    table, coordinates = numbered.pop(gradients.table), settings["numbers"] // 2
    order = table.values.sum(dim=0).argsort(descending=True)
    directions = torch.eye(len(order)).to(table.values) if table.right is None else table.right
    return {
        "table": torch.tensor(gradients.table),
        "directions": directions[:, order].float(),
        "room": torch.tensor(settings["numbers"] - coordinates - HEADER),
        "drawn": torch.tensor(sorted(choice.indices(bound))),
        **dict(tensors_of(leading(numbered, coordinates))),
    }


def _blocks(choice: EKFAC, bound: BoundStage, progress: Progress) -> Sequence[Block]:
    operator = choice.operator(bound)
    if not isinstance(operator, SumOperator) or not isinstance(operator.left, EKFACOperator):
        refuse(f"{bound.stage.where}: EKFAC gives no blocks")
    with progress.task(f"EK-FAC of {bound.stage.where}", 1, "fits") as advance:
        blocks = operator.left.blocks
        advance(1)
    return blocks

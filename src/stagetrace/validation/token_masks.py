"""A stage without some of its tokens: their terms leave the loss, and everything else stays as it was.

    loss_i = sum_t (1 - by [t is taken out]) loss_it

with each term divided as it was: the mean over an example's tokens keeps its divisor, so that the other tokens weigh
what they weighed. That is what a token's score predicts. A label of -100 would do it for sums, and for means it would
raise the weight of the example's other tokens.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, final

import torch
from torch import Tensor, nn

from stagetrace.objectives.objective import Objective, by_token
from stagetrace.progress import Progress, Silent
from stagetrace.stages.bound import BoundStage
from stagetrace.stages.predicted import padding_of, places_of

__all__ = ["TokenNumbers", "without_tokens"]


@final
@dataclass(frozen=True, eq=False)
class TokenNumbers:
    """The predicted tokens of a stage, numbered by example and position: index and position int64 `[tokens]`."""

    index: Tensor
    position: Tensor

    @staticmethod
    def of(bound: BoundStage, progress: Progress | None = None) -> "TokenNumbers":
        """Read off the labels of every example; the model is not evaluated.

        Raises:
            DescriptionError: the stage's loss is not a sum over tokens.
        """
        risk, found = bound.risk, list[tuple[Tensor, Tensor]]()
        by_token(risk.objective)
        with (progress or Silent()).task(
            f"numbering tokens of {risk.where}", len(risk.examples), "examples"
        ) as advance:
            for batch in risk.read(risk.examples.batch_indices()):
                places = places_of(risk, batch)
                found.append((torch.tensor(batch.indices)[places.rows], places.positions))
                advance(len(batch))
        index, position = zip(*found, strict=True)
        return TokenNumbers(torch.cat(index), torch.cat(position))

    def __len__(self) -> int:
        return len(self.index)

    def places(self, numbers: Sequence[int]) -> dict[int, list[int]]:
        """The positions of these tokens by their examples."""
        found = dict[int, list[int]]()
        for number in numbers:
            found.setdefault(int(self.index[number]), []).append(int(self.position[number]))
        return found


def without_tokens(bound: BoundStage, places: Mapping[int, Sequence[int]], by: float = 1.0) -> BoundStage:
    """The stage with the terms of some tokens times `1 - by`; places: their positions by their examples."""
    stage = bound.stage
    changed = replace(
        stage,
        data=_Numbered(stage.data),
        objective=_Weighed(stage.loss, places, by),
        collate=_Collated(stage.examples.collate),
    )
    return replace(bound, stage=changed)


@final
@dataclass(frozen=True, eq=False)
class _Numbered:
    """A data set whose items say their index."""

    data: Any

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        return self.data[index], index


@final
@dataclass(frozen=True, eq=False)
class _Collated:
    """The batch as it was, and the indices of its examples."""

    inner: Callable[[list[Any]], Any]

    def __call__(self, rows: list[tuple[Any, int]]) -> tuple[Any, Tensor]:
        return self.inner([row for row, _ in rows]), torch.tensor([index for _, index in rows])


@final
@dataclass(frozen=True, eq=False)
class _Weighed:
    """The objective, of batches that say their indices, with some tokens' terms times `1 - by`."""

    inner: Objective
    places: Mapping[int, Sequence[int]]
    by: float

    def outputs(self, model: nn.Module, batch: Any) -> Tensor:
        return self.inner.outputs(model, batch[0])

    def losses(self, outputs: Tensor, batch: Any) -> Tensor:
        content, indices = batch
        each = by_token(self.inner).token_losses(outputs, content)
        weights = torch.ones(each.shape, dtype=each.dtype)
        shift = padding_of(content, by_token(self.inner).predicted(content).cpu())
        for row, index in enumerate(indices.tolist()):
            for position in self.places.get(index, ()):
                weights[row, position + int(shift[row])] -= self.by
        return (each * weights.to(each.device)).sum(dim=1)

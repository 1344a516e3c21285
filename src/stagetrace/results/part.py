"""Scores in pieces: what a run keeps as it goes, so that a killed one loses little."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from stagetrace.errors import ResultsError, refuse
from stagetrace.results.scores import Scores, check_values

PART_EXAMPLES = 16384
"""Examples a part. It belongs to the format of the folder: another number needs another format number."""

_PART_BYTES = 64 * 1024**2


def part_size(n_queries: int | None = None) -> int:
    """How many examples a part holds: `PART_EXAMPLES`, or fewer for a matrix, so that a part stays within 64 MiB.

    n_queries: the rows of the matrix; None where the query is reduced to one number.

    Example:
        >>> part_size(), part_size(10), part_size(100_000)
        (16384, 16384, 41)
    """
    if n_queries is None:
        return PART_EXAMPLES
    # score, removal_effect and the two parts, each a float32 a query
    return max(1, min(PART_EXAMPLES, _PART_BYTES // (4 * 4 * n_queries)))


@final
@dataclass(frozen=True, eq=False)
class Part:
    """The scores of the examples `start`, `start + 1`, ... of a stage.

    values, via_shared, via_head: as in `Scores`, `[n]` or `[n_queries, n]`, float64 on the CPU.
        Sign: positive = harmful. Unit: query loss.
    n_examples: how many examples the whole stage has; the removal effect is `-values / n_examples`.

    Raises:
        DescriptionError: a tensor of another dtype, device or shape, or examples beyond the stage's last one.
    """

    start: int
    values: Tensor
    n_examples: int
    via_shared: Tensor | None = None
    via_head: Tensor | None = None

    def __post_init__(self) -> None:
        check_values(f"Part(start={self.start})", self.values, self.via_shared, self.via_head)
        if self.start < 0 or self.stop > self.n_examples:
            refuse(
                f"Part: examples {self.start} to {self.stop - 1} do not exist in a stage of {self.n_examples} examples"
            )

    @property
    def stop(self) -> int:
        """One past the part's last example."""
        return self.start + self.values.shape[-1]

    @property
    def n_queries(self) -> int | None:
        """How many queries the matrix has; None where the query was reduced to one number."""
        return self.values.shape[0] if self.values.ndim == 2 else None


def split(scores: Scores) -> Iterator[Part]:
    """The parts of the scores, in order: the same that a run keeps as it goes."""
    size, n = part_size(scores.n_queries), scores.n_examples
    for start in range(0, n, size):
        values, shared, head = (
            None if tensor is None else tensor[..., start : start + size]
            for tensor in (scores.values, scores.via_shared, scores.via_head)
        )
        assert values is not None
        yield Part(start, values, n, shared, head)


def join(stage: str, parts: Sequence[Part]) -> Scores:
    """The scores that the parts, complete and in order, make up."""

    def whole(tensors: list[Tensor | None]) -> Tensor | None:
        present = [tensor for tensor in tensors if tensor is not None]
        return torch.cat(present, dim=-1) if present else None

    values = torch.cat([part.values for part in parts], dim=-1)
    return Scores(stage, values, whole([p.via_shared for p in parts]), whole([p.via_head for p in parts]))


def place_of(number: int, n_examples: int, n_queries: int | None) -> range:
    """The examples that part `number` holds; empty beyond the stage's last one.

    Example:
        >>> place_of(1, 20_000, None)
        range(16384, 20000)
    """
    size = part_size(n_queries)
    return range(number * size, min((number + 1) * size, n_examples))


def part_count(n_examples: int, n_queries: int | None) -> int:
    """How many parts that many examples make."""
    return -(-n_examples // part_size(n_queries))


def check_place(where: str, number: int, part: Part) -> None:
    """Refuse a part that does not hold the examples that part `number` has to hold.

    Raises:
        ResultsError: it starts or ends elsewhere.
    """
    place = place_of(number, part.n_examples, part.n_queries)
    if (part.start, part.stop) != (place.start, place.stop):
        raise ResultsError(
            f"{where}: part {number} must hold the examples {place.start} to {place.stop - 1}, "
            f"got {part.start} to {part.stop - 1}; a part is part_size(n_queries) examples"
        )

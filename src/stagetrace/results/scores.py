"""What a trace says of one stage's examples."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast, final

import torch
from torch import Tensor

from stagetrace.errors import DataError, refuse
from stagetrace.results.grouped import Grouped, grouped
from stagetrace.results.plot import plot_scores
from stagetrace.results.sign import UNIT
from stagetrace.results.table import Row, Top, frame
from stagetrace.stages.ids import Ids

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from pandas import DataFrame  # pyright: ignore[reportMissingTypeStubs]


@final
@dataclass(frozen=True, eq=False, repr=False)
class Scores:
    """The influence of every example of one stage on the query loss.

    `values[i]` is d(query loss)/d(epsilon) for the stage objective `mean loss + epsilon * loss(example i)`.
    Sign: positive = harmful (more weight on the example raises the query loss). Unit: query loss.

    stage: the stage's name.
    values: float64 on the CPU, `[n_examples]`; or `[n_queries, n_examples]` for a query that was not reduced, in
        float32 where the stage's parameters are, since such a matrix is large and holds no more digits.
    via_shared, via_head: the paper's two parts, in the same shape: the influence that reached the query through
        the shared parameters directly, and through the later stages' heads; they sum to `values`.
        None if not asked for.
    ids: the examples' stable ids, in the order of the scores; None where the stage's data set has none.

    Raises:
        DescriptionError: a tensor of another dtype, device or shape, or another number of ids.
        DataError: a score that is not finite.

    Example:
        >>> scores = Scores("pretrain", torch.tensor([0.5, -2.0, 1.0], dtype=torch.float64))
        >>> scores
        Scores('pretrain': 3 examples, unit query loss, + harmful: 67% of them, largest +1.000e+00, smallest -2.000e+00)
        >>> scores.top(2).indices, scores.top(1, harmful=False).indices
        ((2, 0), (1,))
    """

    stage: str
    values: Tensor
    via_shared: Tensor | None = None
    via_head: Tensor | None = None
    ids: Ids | None = None

    def __post_init__(self) -> None:
        where = f"Scores({self.stage!r})"
        check_values(where, self.values, self.via_shared, self.via_head)
        if self.ids is not None and len(self.ids) != self.n_examples:
            refuse(f"{where}: there must be an id for each of {self.n_examples:,} examples, got {len(self.ids):,}")
        for name in ("values", "via_shared", "via_head"):
            check_finite(f"{where}, {name}", getattr(self, name))

    @property
    def n_examples(self) -> int:
        """How many examples the stage has."""
        return self.values.shape[-1]

    @property
    def n_queries(self) -> int | None:
        """How many queries the matrix has; None where the query was reduced to one number."""
        return self.values.shape[0] if self.values.ndim == 2 else None

    @property
    def removal_effect(self) -> Tensor:
        """The predicted change of the query loss if each example were removed, in the shape of `values`.

        `-values / n_examples`. Sign: negative = removing it helps. Unit: query loss.
        """
        return -self.values / self.n_examples

    @property
    def per_example(self) -> Tensor:
        """One score an example, `[n_examples]`: the values, or for a matrix their mean over the queries."""
        return self.values if self.values.ndim == 1 else self.values.mean(dim=0, dtype=torch.float64)

    @property
    def share_harmful(self) -> float:
        """The share of examples whose score (for a matrix: mean over queries) is above zero, from 0 to 1."""
        return (self.per_example > 0).double().mean().item()

    @property
    def total(self) -> float:
        """The sum of the scores (for a matrix: of their means over queries); positive = harmful; unit: query loss."""
        return self.per_example.sum().item()

    def rank(self, index: int, query: int | None = None) -> int:
        """The place of example `index`, from 1 (the most harmful) to `n_examples`; ties go to the smaller index.

        Raises:
            DescriptionError: no such example or query.
        """
        if not 0 <= index < self.n_examples:
            refuse(f"Scores({self.stage!r}).rank: example {index} does not exist; type 0 to {self.n_examples - 1}")
        ranked, _ = self._ranked(query)
        before = (ranked > ranked[index]).sum() + (ranked[:index] == ranked[index]).sum()
        return int(before.item()) + 1

    def top(self, k: int = 10, *, harmful: bool = True, query: int | None = None) -> Top:
        """The `k` examples with the largest scores (the most harmful), or with the smallest (the most helpful).

        k: how many; all examples if there are fewer. Ties go to the smaller index.
        harmful: True for the largest scores first, False for the most negative first.
        query: of a matrix, the query to rank by; None ranks by the mean over queries, and the title says so.

        Raises:
            DescriptionError: `k` below 1, or no such query.
        """
        if k < 1:
            refuse(f"Scores({self.stage!r}).top: k must be at least 1, got {k}")
        ranked, what = self._ranked(query)
        order = torch.sort(ranked, descending=harmful, stable=True).indices[:k]
        scores = ranked[order]
        removal = -scores / self.n_examples
        rows = zip(map(int, _numbers(order)), _numbers(scores), _numbers(removal), strict=True)
        which = "most harmful (largest scores)" if harmful else "most helpful (most negative scores)"
        title = f"{self.stage}: {len(order)} {which} of {self.n_examples:,} examples{what}"
        if (scores[0] < 0) if harmful else (scores[0] > 0):
            title += "; no score is above 0: all are helpful" if harmful else "; no score is below 0: all are harmful"
        named = {} if self.ids is None else self.ids.named(order.tolist())
        return Top(title, tuple(Row(*row) for row in rows), named)

    def grouped(self, groups: Iterable[str | int]) -> Grouped:
        """The sums of the scores over groups of examples: documents that lie in several rows, sources, authors.

        groups: the name of each example's group, in the order of the examples. Of a `stagetrace.corpora.TokenFile`
            whose rows hold one document each they are `data.documents()`.

        Raises:
            DescriptionError: another number of names than examples.
            DataError: a name that is no text or whole number.
        """
        return grouped(self.stage, self.values, groups)

    def to_pandas(self) -> "DataFrame":
        """A frame with a row an example: index, id where there are ids, score, removal_effect and the parts.

        For a matrix, a column a query.

        Raises:
            DescriptionError: pandas is not installed.
        """
        named = {
            "score": self.values,
            "removal_effect": self.removal_effect,
            "via_shared": self.via_shared,
            "via_head": self.via_head,
        }
        columns: dict[str, list[float]] = {}
        for name, tensor in named.items():
            if tensor is not None and tensor.ndim == 1:
                columns[name] = _numbers(tensor)
            elif tensor is not None:
                columns |= {f"{name}_{query}": _numbers(row) for query, row in enumerate(tensor)}
        ids = {} if self.ids is None else {"id": list(self.ids)}
        return frame({"index": range(self.n_examples), **ids, **columns})

    def plot(self, ax: "Axes | None" = None) -> "Axes":
        """A histogram of the scores (of a matrix: of their means over queries), both sides marked in words.

        ax: where to draw; None makes a new figure.

        Raises:
            DescriptionError: matplotlib is not installed.
        """
        return plot_scores(title_of(self), self.per_example, ax)

    def __repr__(self) -> str:
        n = f"{self.n_examples:,} examples"
        size = n if self.n_queries is None else f"{self.n_queries:,} queries x {n}, mean over queries"
        ranked = self.per_example
        return (
            f"Scores({self.stage!r}: {size}, unit {UNIT}, + harmful: {self.share_harmful:.0%} of them, "
            f"largest {ranked.max().item():+.3e}, smallest {ranked.min().item():+.3e})"
        )

    def _repr_html_(self) -> str:  # pyright: ignore[reportUnusedFunction]
        return self.top().table().html() + self.top(harmful=False).table().html()

    def _ranked(self, query: int | None) -> tuple[Tensor, str]:
        """The vector to rank by, and what it is, in words."""
        if query is None:
            n = self.n_queries
            return self.per_example, "" if n is None else f" (mean over {n:,} queries)"
        if self.n_queries is None:
            refuse(
                f"Scores({self.stage!r}): query={query} needs one row a query, but the query was reduced to one "
                f'number; leave query out, or trace with Query(..., reduction="none")'
            )
        if not 0 <= query < self.n_queries:
            refuse(f"Scores({self.stage!r}): query {query} does not exist; type 0 to {self.n_queries - 1}")
        return self.values[query], f" (query {query})"


def title_of(scores: Scores) -> str:
    """What a picture of the scores shows: of which stage, and over how many queries they are averaged."""
    mean = "" if scores.n_queries is None else f", mean over {scores.n_queries:,} queries"
    return f"Stage '{scores.stage}'{mean}"


def check_values(where: str, values: Tensor, via_shared: Tensor | None, via_head: Tensor | None) -> None:
    """Refuse tensors that are not float64 `[n]`, or float64 or float32 `[n_queries, n]`, on the CPU, parts in twos."""
    if (via_shared is None) != (via_head is None):
        refuse(f"{where}: via_shared and via_head come together, got one of them; give both or neither")
    for name, tensor in (("values", values), ("via_shared", via_shared), ("via_head", via_head)):
        if tensor is None:
            continue
        allowed = (torch.float64,) if tensor.ndim != 2 else (torch.float64, torch.float32)
        if tensor.dtype not in allowed or tensor.dtype != values.dtype or tensor.device.type != "cpu":
            refuse(
                f"{where}: {name} must be float64 on the CPU, got {tensor.dtype} on {tensor.device}; "
                f"type .double().cpu()"
            )
        if tensor.shape != values.shape or tensor.ndim not in (1, 2) or tensor.numel() == 0:
            refuse(
                f"{where}: {name} must be [n_examples] or [n_queries, n_examples], at least one of each and all alike, "
                f"got {list(tensor.shape)}"
            )


def check_finite(where: str, tensor: Tensor | None, first: int = 0) -> None:
    """Refuse a score that is not finite, by the index of its example; `first` is that of the tensor's first one."""
    if tensor is None or bool(torch.isfinite(tensor.sum())) or bool(torch.isfinite(tensor).all()):
        return  # the sum of what is not finite is not finite either
    place = torch.nonzero(~torch.isfinite(tensor))[0]
    raise DataError(
        f"{where}: example {first + int(place[-1])} has the score {tensor[tuple(place)].item()}; "
        f"look at its loss, or raise the solver's damping"
    )


def _numbers(vector: Tensor) -> list[float]:
    return cast("list[float]", vector.tolist())  # pyright: ignore[reportUnknownMemberType]

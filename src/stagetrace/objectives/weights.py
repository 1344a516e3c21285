"""How much each example counts in its stage's mean: a number per example, or one for each source of examples."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast, final

import torch
from torch import Tensor

from stagetrace.errors import refuse
from stagetrace.objectives.batches import dtype_of, in_short

SHOWN = 4
"""Names that a message lists."""


@final
@dataclass(frozen=True, eq=False)
class Weights:
    """The weights w of a stage's examples: the stage minimised `(1/n) sum_i w_i loss_i + penalty`.

    By default they are divided by their mean over all n examples, those of weight 0 included, so that the stage
    minimised `sum_i w_i loss_i / sum_i w_i + penalty`: a weighted mean, as `nn.CrossEntropyLoss(weight=...)` and
    scikit-learn's `sample_weight` take it, and as a sampler that draws examples with these chances has in expectation.
    Losses then keep their unit, and a weight decay, a link's alpha and a damping mean what they mean without weights.
    Give `scaled=False` for a training loss `(w * loss).mean()` with a penalty beside it.

    The loss of example i is then `w_i loss_i`. Its score is the derivative along it, so that `-score / n` is the
    predicted change of the query loss where the example is left out; with weight 0 it has no influence, and score 0.
    A weight of 2 is as good as two copies of the example.

    Args:
        values: one number of at least 0 per example; or, with `sources`, a mapping of each source to its weight.
        sources: each example's source (or class: then these are class weights), one per example; for `hf.stage` also
            the name of the column that holds it.
        scaled: whether the weights are divided by their mean.

    Raises:
        DescriptionError: weights that are no numbers, negative, not finite or all 0; another number of them than there
            are examples; a source without a weight, or a weight for a source that no example has.

    Example:
        >>> Weights([1, 3, 0, 0]).of(4, "stage 'fit'")
        tensor([1., 3., 0., 0.], dtype=torch.float64)
        >>> Weights({"web": 1, "code": 3}, sources=["web", "code"]).of(2, "stage 'fit'")
        tensor([0.5000, 1.5000], dtype=torch.float64)
    """

    values: Any
    sources: Any = None
    scaled: bool = True

    def __post_init__(self) -> None:
        by_source = isinstance(self.values, Mapping)
        if by_source and not self.values:
            refuse(
                "Weights has no weight: the mapping is empty; give each source its weight, such as "
                "Weights({'web': 0.5, 'code': 2.0}, sources=...)"
            )
        if by_source and self.sources is None:
            some = ", ".join(map(repr, list(cast("Mapping[object, object]", self.values))[:SHOWN]))
            refuse(
                f"Weights has a weight for each of {some}, but does not say which example is of which; type "
                "Weights({...}, sources=...) with one source per example (for hf.stage a column's name)"
            )
        if self.sources is not None and not by_source:
            refuse(
                "Weights(..., sources=...) needs the sources' weights as a mapping, such as {'web': 0.5, 'code': 2.0}, "
                f"got {in_short(self.values)}"
            )
        if not isinstance(self.scaled, bool):
            refuse(f"Weights(scaled=...) must be True or False, got {self.scaled!r}")

    def of(self, examples: int, where: str) -> Tensor:
        """The weight of each example, float64 `[n]`, divided by their mean where they are scaled."""
        given = self._by_source(examples, where) if self.sources is not None else self.values
        weights = _numbers(given, where)
        if weights.shape != (examples,):
            refuse(
                f"{where}: weights must hold one number for each of the {examples:,} examples, got {_count(weights)}"
            )
        bad = (~torch.isfinite(weights) | (weights < 0)).nonzero().flatten()
        if len(bad):
            index = int(bad[0])
            refuse(
                f"{where}: example {index} has the weight {float(weights[index])}; a weight is a finite number of at "
                "least 0, and 0 leaves the example without influence"
            )
        mean = float(weights.mean())
        if mean == 0:
            refuse(f"{where}: all weights are 0, so that nothing was minimised; give weights above 0 to some examples")
        if not math.isfinite(mean):
            refuse(f"{where}: the weights add up to more than a number holds; divide them by their largest")
        return weights / mean if self.scaled else weights

    def _by_source(self, examples: int, where: str) -> list[object]:
        """The weight of each example's source."""
        if isinstance(self.sources, str):
            refuse(
                f"{where}: Weights(sources={self.sources!r}) names a column, which hf.stage and hf.from_trainer read; "
                "here give one source per example"
            )
        table = cast("Mapping[object, object]", self.values)
        names = [_plain(source) for source in _items(self.sources, f"{where}: Weights(sources=...)")]
        if len(names) != examples:
            refuse(f"{where}: Weights(sources=...) names {len(names):,} sources for {examples:,} examples")
        for index, name in enumerate(names):
            if not _has(table, name):
                known = ", ".join(map(repr, list(table)[:SHOWN]))
                refuse(f"{where}: example {index} is of the source {name!r}, which has no weight; there are {known}")
        unused = [source for source in table if source not in set(names)]
        if unused:
            refuse(
                f"{where}: no example is of the source {unused[0]!r}, which has a weight; correct its name or leave "
                "it out"
            )
        return [table[name] for name in names]


def as_weights(given: object, where: str) -> Weights | None:
    """Weights as they are, numbers wrapped; None for none.

    Raises:
        DescriptionError: neither.
    """
    if given is None or isinstance(given, Weights):
        return given
    if isinstance(given, str):
        refuse(
            f"{where}: weights={given!r} names a column, which hf.stage and hf.from_trainer read; here give one "
            "number per example"
        )
    if isinstance(given, Mapping):
        refuse(f"{where}: weights for each source are given as Weights({{...}}, sources=...), with each one's source")
    return Weights(given)


def _numbers(given: object, where: str) -> Tensor:
    if isinstance(given, Tensor):
        if given.is_complex() or given.layout is not torch.strided:
            kind = dtype_of(given) if given.is_complex() else "a sparse one"
            refuse(f"{where}: weights must be real numbers in a dense tensor, got {kind}")
        return given.detach().to("cpu", torch.float64, copy=True)
    values = [_plain(value) for value in _items(given, f"{where}: weights")]
    for index, value in enumerate(values):
        if not isinstance(value, (int, float)):
            refuse(f"{where}: the weight of example {index} must be a number, got {in_short(value)}")
    try:
        return torch.tensor(values, dtype=torch.float64)
    except OverflowError:
        refuse(f"{where}: a weight is more than a number holds; divide the weights by their largest")


def _items(given: object, what: str) -> Sequence[object]:
    ordered = isinstance(given, Sequence) or hasattr(given, "__array__")
    if not ordered or isinstance(given, (str, bytes)) or (isinstance(given, Tensor) and given.ndim == 0):
        refuse(f"{what} must be a sequence with one entry per example, got {in_short(given)}")
    return list(cast("Iterable[object]", given))


def _plain(value: object) -> object:
    """A number or a name without the array or the tensor of one that it comes in."""
    item = getattr(value, "item", None)
    try:
        return item() if callable(item) else value
    except (ValueError, RuntimeError):  # several numbers
        return value


def _has(table: Mapping[object, object], name: object) -> bool:
    try:
        return name in table
    except TypeError:  # a list
        return False


def _count(weights: Tensor) -> str:
    return f"{len(weights):,}" if weights.ndim == 1 else f"a tensor {list(weights.shape)}"

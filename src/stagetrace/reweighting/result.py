"""What `reweight` gives: the weights, how they came about, and what retraining with them did."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, cast, final

from torch import Tensor

from stagetrace.errors import refuse
from stagetrace.results.table import ShownAsTable, Table, frame
from stagetrace.validation.reliability import mean_over_seeds

if TYPE_CHECKING:
    from pandas import DataFrame  # pyright: ignore[reportMissingTypeStubs]

_HEADINGS = (
    "step",
    "rms change of a weight",
    "predicted change (- helps)",
    "true change (- helps)",
    "true / predicted",
    "outcome",
)


@final
@dataclass(frozen=True)
class Try:
    """New weights that were tried: the chain was trained again with them.

    step: from 1; tries of one step go along the same derivative. length: root mean square change of a weight.
    predicted, true: change of the query loss, the mean over the trainings; negative = it falls. Of a training that
    diverged the true change is infinite. kept: whether the weights were taken over; else they were undone, because less
    than a tenth of the prediction came true.
    """

    step: int
    length: float
    predicted: float
    true: float
    kept: bool

    @property
    def came_true(self) -> float:
        """The share of the predicted change that came true; 1 is right, below 0 the loss rose."""
        return self.true / self.predicted


@final
@dataclass(frozen=True)
class Retrained:
    """A loss after training with all weights 1, and after the same training with the new weights.

    training: in words. used: whether its derivative shaped the weights. uniform, weighted: unit: query loss.
    """

    training: str
    used: bool
    uniform: float
    weighted: float

    @property
    def change(self) -> float:
        """What the weights changed: negative = they help; unit: query loss."""
        return self.weighted - self.uniform


@final
@dataclass(frozen=True, eq=False, repr=False)
class Reweighting(ShownAsTable):
    """The result of `stagetrace.reweight`.

    weights: by stage, float64 `[n]` by the example's index in the stage's data set: what to multiply its loss with, or
        how often to draw it. None is negative, and their mean is 1.
    history: every try, in order. stopped: why no further one was made.
    target: the query's loss in each training. held_out: that of the held-out query; empty where none was given.
    """

    weights: Mapping[str, Tensor]
    history: tuple[Try, ...]
    target: tuple[Retrained, ...]
    held_out: tuple[Retrained, ...] = ()
    stopped: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "weights", MappingProxyType(dict(self.weights)))

    def __getitem__(self, stage: str) -> Tensor:
        """The weights of a stage's examples.

        Raises:
            DescriptionError: no such stage was reweighted.
        """
        if stage not in self.weights:
            names = ", ".join(map(repr, self.weights))
            refuse(f"Reweighting: no stage {stage!r} was reweighted; type one of: {names}")
        return self.weights[stage]

    def effective_examples(self, stage: str) -> float:
        """As many examples of equal weight average as well: `(sum w)^2 / sum w^2`, from 1 to n."""
        weights = self[stage]
        return float(weights.sum() ** 2 / weights.square().sum())

    def to_pandas(self, stage: str) -> "DataFrame":
        """A frame with the columns index and weight.

        Raises:
            DescriptionError: no such stage, or pandas is not installed.
        """
        weights = self[stage]
        return frame({"index": range(len(weights)), "weight": cast("list[float]", weights.tolist())})  # pyright: ignore[reportUnknownMemberType]

    def save(self, path: str | Path) -> None:
        """Write a folder: `weights/STAGE.parquet` with the columns index and weight, and `reweighting.json`.

        Raises:
            ResultsError: the folder is there already and holds something, or the file system refused.
        """
        from stagetrace.reweighting.write import write  # which knows a Reweighting

        write(self, Path(path))

    def table(self) -> Table:
        """What it says, ready to be drawn."""
        rows = tuple(
            (
                str(each.step),
                f"{each.length:.3f}",
                f"{each.predicted:+.3e}",
                f"{each.true:+.3e}" if math.isfinite(each.true) else "diverged",
                f"{each.came_true:+.2f}" if math.isfinite(each.true) else "-",
                "kept" if each.kept else "undone",
            )
            for each in self.history
        )
        title = f"Weights of {', '.join(map(repr, self.weights))}: {_sentence('query loss', self.target)}"
        return Table(title, _HEADINGS, rows, "\n".join(self._lines()), frozenset({"outcome"}))

    def _lines(self) -> list[str]:
        lines = ["unit of all changes: query loss; negative = the weights help"]
        lines += [_sentence("held-out query loss", self.held_out)] if self.held_out else []
        lines += [
            f"weights of '{stage}': {float(each.min()):.3f} to {float(each.max()):.3f}, {int((each == 0).sum()):,} of "
            f"{len(each):,} are 0; as many as {self.effective_examples(stage):,.0f} examples of equal weight"
            for stage, each in self.weights.items()
        ]
        if not self.held_out:
            lines.append("no held-out query was given: what was gained on the query itself may not hold on other data")
        return [*lines, *([f"stopped: {self.stopped}"] if self.stopped else [])]

    def __repr__(self) -> str:
        return f"Reweighting({', '.join(map(repr, self.weights))}: {_sentence('query loss', self.target)})"


def _sentence(what: str, each: Sequence[Retrained]) -> str:
    """The change of a loss in the trainings whose derivative was used, and in the others."""
    parts = list[str]()
    for used in (True, False):
        some = [one for one in each if one.used == used]
        if not some:
            continue
        before, after = (
            sum(values) / len(some) for values in zip(*((r.uniform, r.weighted) for r in some), strict=True)
        )
        of = some[0].training if len(some) == 1 else f"mean of {len(some)} {'' if used else 'other '}orders"
        text = f"{of} {before:.4g} with equal weights, {after:.4g} with these ({after - before:+.3e}"
        if len(some) > 1:
            found = mean_over_seeds([one.change for one in some])
            text += f", 95 %: {found.low:+.3e} to {found.high:+.3e}"
        parts.append(text + ")")
    return f"{what}: {'; '.join(parts)}"

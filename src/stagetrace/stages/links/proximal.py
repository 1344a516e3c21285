"""The shared parameters were trained further, near where they started."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from numbers import Real
from typing import ClassVar, Literal, final

from torch import Tensor

from stagetrace.errors import DescriptionError, refuse
from stagetrace.stages.links.link import Anchored, Link


@final
@dataclass(frozen=True)
class Proximal(Link):
    """The shared parameters W were trained further, held near where they started (case 2, eq. 12):

    `argmin alpha * |W - W_previous|^2 + F(W, Theta)`, without a half, so the penalty's curvature is `2 alpha`.

    This is a model of how far training went, and a rough one: where fine-tuning took some steps and stopped, its
    scores say little of what retraining does, whatever the alpha (`docs/exact.md`). Record such a training, and take
    `Unrolled`.

    Args:
        shared: which parameters are shared.
        alpha: strength of the pull, in loss units per squared parameter unit; 0.01 is the paper's. "auto" estimates it
            from the stationarity of eq. 12: `alpha = -<dF/dW, W - W_previous> / (2 |W - W_previous|^2)`.

    Raises:
        DescriptionError: alpha is neither a positive number nor "auto"; `shared` names nothing.

    Example:
        >>> Proximal({"encoder": "bert"}, alpha=0.1).pairs
        {'encoder': 'bert'}
    """

    alpha: float | Literal["auto"] = 0.01

    in_training_loss: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        number = isinstance(self.alpha, Real) and not isinstance(self.alpha, bool)
        if self.alpha != "auto" and not (number and 0 < float(self.alpha) < float("inf")):
            refuse(f"Proximal(alpha=...) must be a positive number or 'auto', got {self.alpha!r}; the paper uses 0.01")

    def strength(self, anchored: Anchored) -> Mapping[str, float | Tensor]:
        """`alpha` for every entry."""
        return dict.fromkeys(anchored.values, float(self.resolved(anchored).alpha))

    def resolved(self, anchored: Anchored) -> "Proximal":
        """With alpha as a number; "auto" is estimated from the projection of the stationarity on the displacement.

        Raises:
            DescriptionError: the estimate is not positive, or the parameters did not move.
        """
        return self if self.alpha != "auto" else replace(self, alpha=_estimated_alpha(anchored))


def _estimated_alpha(anchored: Anchored) -> float:
    """`alpha = -<dF/dW, W - W'> / (2 |W - W'|^2)`, which solves eq. 12's stationarity `dF/dW = -2 alpha (W - W')`."""
    displacement, gradient = anchored.displacement, anchored.gradient()
    squared = sum(float(away.double().square().sum()) for away in displacement.values())
    slope = sum(float((gradient[name].double() * away.double()).sum()) for name, away in displacement.items())
    alpha = -slope / (2 * squared) if squared else 0.0
    if alpha <= 0:
        raise DescriptionError(
            f"{anchored.where}: alpha='auto' estimates {alpha:.3g}, which is no pull: the shared parameters "
            f"{'did not move' if not squared else 'do not pull back towards the previous stage'} "
            "(the stage was trained to a minimum of its own loss); give a number, alpha=0.01 is the paper's"
        )
    return alpha

"""How well predictions and truth agree."""

from dataclasses import dataclass
from typing import final

from torch import Tensor

from stagetrace.errors import refuse


@final
@dataclass(frozen=True)
class Agreement:
    """n pairs: Pearson's r, Spearman's rank correlation (ties share their mean rank), and the slope.

    slope: of truth on prediction, by least squares through the origin: `sum(p t) / sum(p^2)`. 1 is ideal, above 1 the
    predictions are too small. A correlation is NaN where a side does not vary.

    Example:
        >>> import torch
        >>> agreement = Agreement.of(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([2.0, 4.0, 6.0]))
        >>> print(agreement)
        r = 1.0000, Spearman 1.0000, slope 2.0000 (n = 3)
    """

    n: int
    pearson_r: float
    spearman_r: float
    slope: float

    def __str__(self) -> str:
        return f"r = {self.pearson_r:.4f}, Spearman {self.spearman_r:.4f}, slope {self.slope:.4f} (n = {self.n})"

    @staticmethod
    def of(predicted: Tensor, true: Tensor) -> "Agreement":
        """Compare two vectors of the same unit and sign.

        Raises:
            DescriptionError: they are not vectors of one length, of at least 2.
        """
        if predicted.ndim != 1 or predicted.shape != true.shape or len(predicted) < 2:
            refuse(
                "Agreement.of needs two vectors of one length of at least 2, "
                f"got {list(predicted.shape)} and {list(true.shape)}"
            )
        p, t = predicted.double().cpu(), true.double().cpu()
        slope = float((p @ t) / (p @ p))
        return Agreement(len(p), _pearson(p, t), _pearson(_ranks(p), _ranks(t)), slope)


def _pearson(left: Tensor, right: Tensor) -> float:
    a, b = left - left.mean(), right - right.mean()
    return float((a @ b) / (a.norm() * b.norm()))


def _ranks(values: Tensor) -> Tensor:
    """Ranks from 1; equal values share the mean of theirs."""
    below = (values.unsqueeze(0) < values.unsqueeze(1)).sum(dim=1)
    equal = (values.unsqueeze(0) == values.unsqueeze(1)).sum(dim=1)
    return below.double() + (equal.double() + 1) / 2

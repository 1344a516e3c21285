"""Log-probabilities of texts, weighted by how good they were: policy gradients and reward-weighted regression."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn

from stagetrace.errors import BatchError, refuse
from stagetrace.objectives.batches import as_labels, in_short
from stagetrace.objectives.labels import check_finite_labels
from stagetrace.objectives.tokens import NextToken, TokenReduction

__all__ = ["WeightedLogProb"]


@final
@dataclass(frozen=True)
class WeightedLogProb:
    """The negative log-probability of each text's predicted tokens, times a weight from a column of the batch.

        loss_i = -w_i sum_t log p(token_t | tokens before it),    w_i = A_i,  or  exp(A_i / beta) with `beta`

    With an advantage A this is the loss whose gradient is the policy gradient at the policy that drew the texts
    (Williams 1992); with `beta` and a reward or an advantage it is reward-weighted or advantage-weighted regression
    (Peters & Schaal 2007; Peng et al. 2019). Which tokens are predicted is as for `NextToken`: labels of -100 are not.
    Unit: nats, times that of the column; per predicted token with `reduction="mean"`.

    A text with a negative weight was pushed down. Its loss is concave in the outputs, so such data have no Gauss-Newton
    matrix that is positive; give `curvature=Hessian()`, or `beta`.

    Args:
        column: the batch's key with one number per text, such as "advantage" or "reward"; the model is not given it.
        beta: the temperature of the exponential, above 0; None weighs by the column itself.
        reduction: over a text's tokens: "sum", or "mean" as for a length-normalised policy gradient.

    Raises:
        DescriptionError: another reduction, no column, a beta that is not above 0.
        BatchError: (from a batch) it has no such column, or not one finite number per text in it.

    Example:
        >>> import torch
        >>> batch = {"input_ids": torch.tensor([[3, 1, 2]]), "advantage": torch.tensor([0.5])}
        >>> (2 * WeightedLogProb("advantage").losses(torch.zeros(1, 3, 7), batch)).exp().round()
        tensor([49.])
    """

    column: str
    beta: float | None = None
    reduction: TokenReduction = "sum"

    def __post_init__(self) -> None:
        if not isinstance(self.column, str) or not self.column:
            refuse(f'WeightedLogProb: column must name one of the batch, such as "advantage", got {self.column!r}')
        beta = self.beta
        if beta is not None and not (isinstance(beta, (int, float)) and 0 < beta < math.inf):
            refuse(f"WeightedLogProb(beta=...) must be a number above 0, or None, got {beta!r}")
        _ = self._tokens

    @property
    def _tokens(self) -> NextToken:
        return NextToken(self.reduction)

    def outputs(self, model: nn.Module, batch: Any) -> Tensor:
        return self._tokens.outputs(model, self._without(batch))

    def losses(self, outputs: Tensor, batch: Any) -> Tensor:
        return self._tokens.losses(outputs, self._without(batch)) * self._weights(batch, outputs)

    def token_losses(self, outputs: Tensor, batch: Any) -> Tensor:
        """Each predicted token's term of its text's loss, `[batch, length]`, at the token's own position."""
        each = self._tokens.token_losses(outputs, self._without(batch))
        return each * self._weights(batch, outputs).unsqueeze(1)

    def predicted(self, batch: Any) -> Tensor:
        """The tokens that are predicted, at their own positions; -100 elsewhere."""
        return self._tokens.predicted(self._without(batch))

    def check(self, batch: Any, shape: Sequence[int]) -> None:
        """Refuse labels that `NextToken` refuses, and numbers that are not finite."""
        rest, given = self._without(batch), self._column(batch)
        check_finite_labels(given)
        if self.beta is not None and not bool(torch.isfinite((given.double() / self.beta).exp()).all()):
            raise BatchError(f"exp({self.column} / {self.beta:g}) is more than a number holds; raise beta")
        self._tokens.check(rest, shape)

    def labelled(self, batch: Any) -> int:
        """How many tokens of the batch are predicted."""
        return self._tokens.labelled(self._without(batch))

    def _without(self, batch: Any) -> dict[str, Any]:
        """The batch as `NextToken` takes it."""
        if not isinstance(batch, Mapping) or self.column not in batch:
            raise BatchError(
                f"WeightedLogProb needs a dict with '{self.column}', got {in_short(batch)}; add one number per text "
                "under that name, in the data set or by collate="
            )
        return {key: value for key, value in batch.items() if key != self.column}

    def _weights(self, batch: Any, like: Tensor) -> Tensor:
        given = self._column(batch).reshape(-1).to(like)
        return given if self.beta is None else (given / self.beta).exp()

    def _column(self, batch: Any) -> Tensor:
        given = as_labels(batch[self.column], "WeightedLogProb")
        if given.numel() != len(given) or not given.ndim:
            raise BatchError(f"WeightedLogProb needs one number per text in '{self.column}', got {list(given.shape)}")
        return given

"""The other sign: what kronfluence, quanda and bergson call a score is the negative of ours."""

import torch
from torch import Tensor

from stagetrace.results import Scores

PROPONENT = (
    "value = -score of stagetrace: positive = proponent (more weight on the example lowers the query loss, removing it "
    "raises it); negative = harmful; unit: query loss; to have the predicted effect of removal, divide by the number "
    "of examples"
)
"""What the exported numbers mean, for metadata and the terminal. -score / n is the removal effect."""


def proponents(scores: Scores) -> Tensor:
    """`-values` as `[n_queries, n_examples]`, one row where the query was reduced; float32, positive = proponent.

    A query of reduction "mean" or "sum" has one row, that of the reduced loss.

    Example:
        >>> proponents(Scores("pretrain", torch.tensor([0.5, -2.0]).double()))
        tensor([[-0.5000,  2.0000]])
    """
    values = scores.values if scores.values.ndim == 2 else scores.values.unsqueeze(0)
    return (-values).to(torch.float32).contiguous()


def from_proponents(stage: str, matrix: Tensor) -> Scores:
    """The scores of such a matrix: `[n_queries, n_examples]` or `[n_examples]`, positive = proponent.

    Raises:
        DescriptionError: it is of another shape or empty.
        DataError: a value that is not finite.

    Example:
        >>> from_proponents("pretrain", torch.tensor([[-0.5, 2.0]])).values
        tensor([[ 0.5000, -2.0000]], dtype=torch.float64)
    """
    return Scores(stage, -matrix.detach().cpu().double())

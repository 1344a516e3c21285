"""Small runs to be curated."""

from collections.abc import Sequence
from typing import Any

import torch

from stagetrace.results import Scores, Trace

RUN: dict[str, Any] = {"stages": {}, "query": {"data": {"examples": 6, "sha256": "f00d" * 16}, "reduction": "mean"}}


def traced(scores: Sequence[float], **description: Any) -> Trace:
    """A run of one stage, 'pretrain', with these scores."""
    values = torch.tensor(scores, dtype=torch.float64)
    return Trace({"pretrain": Scores("pretrain", values)}, description={**RUN, **description})

"""Random combinations of columns: what is linear in each column is looked at for all of them by a few.

With E `[dim, k]` and a standard normal w, the mean of `|E w|^2` is `|E|^2`. In less than two of a thousand cases all
`PROBES` such lengths are below `|E| / SURE`: P(|N(0, 1)| < 1/4)^4 is 1.5e-3, were E of rank one, and less otherwise.
"""

import torch
from torch import Tensor

__all__ = ["PROBES", "SURE", "mixtures"]

PROBES, SURE = 4, 4.0


def mixtures(sizes: Tensor, like: Tensor) -> Tensor:
    """Weights `[k, PROBES]`, standard normal over the columns' sizes `[k]`, drawn by a seed; 0 of a zero column."""
    drawn = torch.randn(len(sizes), PROBES, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return (drawn * torch.where(sizes > 0, 1 / sizes, 0.0).unsqueeze(1)).to(like)

"""Correlations and slope against SciPy and NumPy."""

import math

import numpy as np
import pytest
import scipy.stats
import torch

from stagetrace.validation import Agreement


@pytest.mark.parametrize("ties", [False, True])
def test_equals_scipy(ties: bool):
    generator = torch.Generator().manual_seed(2)
    p = torch.randn(40, generator=generator, dtype=torch.float64)
    t = (0.5 * p + torch.randn(40, generator=generator, dtype=torch.float64)).exp()
    if ties:
        p, t = p.round(), t.round()
    found = Agreement.of(p, t)
    assert found.n == 40
    assert found.pearson_r == pytest.approx(scipy.stats.pearsonr(p.numpy(), t.numpy())[0], rel=1e-12)
    assert found.spearman_r == pytest.approx(scipy.stats.spearmanr(p.numpy(), t.numpy())[0], rel=1e-12)
    assert found.slope == pytest.approx(np.linalg.lstsq(p.numpy()[:, None], t.numpy(), rcond=None)[0][0], rel=1e-12)


def test_no_correlation_without_variation():
    assert math.isnan(Agreement.of(torch.ones(3), torch.tensor([1.0, 2.0, 3.0])).pearson_r)

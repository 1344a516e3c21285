"""Every architecture of the zoo traced on a GPU: other kernels, the same scores."""

import pytest
import torch

from tests.architectures import dense
from tests.architectures.rows import SOLVED
from tests.architectures.zoo import LANGUAGE, LAYERS, Case

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU that PyTorch can use")]


@pytest.mark.parametrize("case", [pytest.param(case, id=case.name) for case in (*LAYERS, *LANGUAGE)])
def test_scores_are_those_of_the_cpu(case: Case):
    there, here = dense.traced(case, "cuda"), dense.traced(case)
    for name, wanted in here.items():
        apart = float((there[name] - wanted).abs().max() / wanted.abs().max())
        assert apart <= max(case.tolerance, SOLVED), name

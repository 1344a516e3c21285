"""The damping sweep: the scores are those of the moved damping, and the comparison is counted right."""

import pytest
import torch

from stagetrace import CG, GaussNewton, Lanczos, Scores, trace
from stagetrace.curvature.auto import Auto
from stagetrace.errors import DescriptionError
from stagetrace.report.sweep import Rescaled, Stability, sweep
from stagetrace.solvers import FromSpectrum, solve
from tests import jobs

SOLVER = Lanczos(damping=0.05, rtol=1e-9)


def test_a_sweep_compares_with_the_scores_at_ten_times_less_and_more_damping():
    chain, query, _ = jobs.frozen()
    result = trace(chain, query, curvature=GaussNewton(), solver=SOLVER)
    found = sweep(result, chain, query, curvature=GaussNewton(), solver=SOLVER)
    assert [(each.stage, each.factor) for each in found] == [
        (stage, factor) for factor in (0.1, 10.0) for stage in ("pretrain", "finetune")
    ]
    for each in found:
        solver = Lanczos(damping=0.05 * each.factor, rtol=1e-9)
        again = trace(chain, query, curvature=GaussNewton(), solver=solver)[each.stage].values
        ranks = [values.argsort().argsort().double() for values in (result[each.stage].values, again)]
        assert each.spearman == pytest.approx(float(torch.corrcoef(torch.stack(ranks))[0, 1]))
        assert each.spearman < 1
    assert {each.top for each in found} == {3, 2}


@pytest.mark.parametrize("stage", ["pretrain", "finetune"])
def test_a_damping_that_was_chosen_is_moved_from_what_was_chosen(stage: str):
    """The first stage is indefinite: Gauss-Newton is inverted, shifted by the cut. The last one is not."""
    operator = Auto().operator(jobs.frozen()[0][stage])
    system = FromSpectrum()(operator)
    assert (system.matrix == "G") == (stage == "pretrain")
    identity = torch.eye(operator.size, dtype=torch.float64)
    rhs = torch.randn(operator.size, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    matrix = system.operator @ identity
    for factor in (1.0, 10.0):
        if system.matrix == "G":
            wanted = torch.linalg.solve(matrix + factor * system.linear.damping * identity, rhs)
        else:
            wanted = torch.linalg.solve(matrix @ matrix + factor * system.linear.damping * identity, matrix @ rhs)
        found = solve(operator, rhs, Rescaled(Lanczos(rtol=1e-11), factor)).value
        torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-9)


def test_stability_of_a_turned_ranking():
    before = Scores("s", torch.arange(40.0).double())
    turned = Stability.of(before, Scores("s", -before.values), 10.0)
    assert (turned.spearman, turned.kept, turned.top) == (pytest.approx(-1), 0, 4)
    shifted = Scores("s", before.values + torch.tensor([5.0] * 2 + [0.0] * 38).double())
    assert Stability.of(before, shifted, 10.0).kept == 1
    one = Scores("s", torch.ones(1).double())
    assert Stability.of(one, one, 10.0).spearman == 1


def test_what_is_not_damped_cannot_be_moved():
    chain, query, _ = jobs.frozen()
    result = trace(chain, query, solver=Lanczos(damping=0.0, rtol=1e-2, max_steps=200), of="finetune")
    with pytest.raises(DescriptionError, match="no stage is damped"):
        sweep(result, chain, query, solver=Lanczos(damping=0.0))
    undamped = CG(damping=0.0)
    assert Rescaled(undamped, 10.0).rule == undamped.rule

"""Where training again with every example ends, beside the model that was traced."""

import math
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor

from stagetrace.checks.finding import Level
from stagetrace.errors import DescriptionError, StagetraceWarning
from stagetrace.validation import SGD, Adam, Control, RandomRemovals, Steps, validate
from stagetrace.validation.resolving import query_loss
from stagetrace.validation.retrain import Retraining
from tests.chains import CASES, STRONG_TANH, chain_of, query_of
from tests.oracles import solved

ELASTIC = {case.name: case for case in CASES}["tanh, elastic 0.5"]


def control(traced: float, *losses: float, is_stochastic: bool = True) -> Control:
    return Control(traced, torch.tensor(losses, dtype=torch.float64), is_stochastic)


@pytest.mark.parametrize(
    ("found", "elsewhere"),
    [
        (control(1.0, 1.03, is_stochastic=False), True),
        (control(1.0, 0.97, is_stochastic=False), True),
        (control(1.0, 1.01, is_stochastic=False), False),  # too near to matter
        (control(0.0, 1e-12, is_stochastic=False), True),
        (control(1.0, 1.5), False),  # one of several possible runs: its noise is not known
        (control(1.0, 1.5, 1.51, 1.52), True),
        (control(1.0, 1.0, 1.3, 1.6), False),  # within what runs differ by
        (control(-1.0, -1.5, -1.51), True),
    ],
)
def test_a_control_is_elsewhere_if_it_is_far_and_noise_does_not_say_why(found: Control, elsewhere: bool):
    assert found.elsewhere is elsewhere
    assert found.finding("s").level is (Level.WARNING if elsewhere else Level.OK)


def test_the_noise_is_that_of_the_runs():
    assert control(1.0, 1.0, 1.2).noise == pytest.approx(math.sqrt(0.02))
    assert control(1.0, 1.0, is_stochastic=False).noise == 0.0
    assert math.isnan(control(1.0, 1.0).noise)
    assert control(1.0, 1.0).record()["noise"] is None
    assert control(1.0, 1.0, 1.2).loss == pytest.approx(1.1)


class Nothing:
    """Predicts nothing."""

    name, unit = "nothing", None

    def removal_effects(self, chain: Any, query: Any, stage: str, progress: Any = None) -> Tensor:
        return torch.zeros(len(chain[stage].stage.examples))


def test_the_old_start_is_said_to_end_elsewhere():
    """What was trained further starts where the stage before ended, so the control leaves the traced model."""
    chain, query = chain_of(STRONG_TANH, solved(STRONG_TANH)), query_of(STRONG_TANH, reduction="mean")
    given: dict[str, Any] = {"choices": [RandomRemovals(3)], "processes": 1, "estimators": [Nothing()], "seeds": (0, 1)}
    still = Steps(SGD(1e-9), 2, 6)
    with pytest.warns(StagetraceWarning, match="validate: query loss: .* ends at another model"):
        found = validate(chain, query, fit=still, **given)
    expected = Retraining(chain, query, "pretrain", dict.fromkeys(chain.names, still)).losses([()], 1.0, 1)
    assert found.control.traced == pytest.approx(float(query_loss(chain, query)))
    assert float(found.control.losses[1]) == pytest.approx(float(expected), rel=1e-12)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not validate(chain, query, fit=still, stage="finetune", **given).control.elsewhere


def test_a_warm_start_must_let_the_stage_before_through():
    chain, query = chain_of(STRONG_TANH, solved(STRONG_TANH)), query_of(STRONG_TANH)
    warm, names = Steps(Adam(1e-3), 2, 6, "warm"), ("pretrain", "finetune")
    with pytest.raises(DescriptionError, match=r"stage 'finetune' trained further.*fit=Rerun\(\).*start='previous' or"):
        Retraining(chain, query, "pretrain", dict.fromkeys(names, warm))
    assert Retraining(chain, query, "finetune", dict.fromkeys(names, warm)).is_stochastic
    assert warm.start_at(chain["finetune"], follows=False) == "warm"
    default = Steps(Adam(1e-3), 2, 6)
    assert [default.start_at(chain[name], follows=name == "finetune") for name in names] == ["warm", "previous"]


def test_a_pull_in_the_loss_lets_the_stage_before_through_a_warm_start():
    """It starts where it ended, and the new values of the stage before pull on it."""
    chain, query = chain_of(ELASTIC, solved(ELASTIC)), query_of(ELASTIC, reduction="mean")
    fits = {"pretrain": Steps(SGD(0.2), 9, 5), "finetune": Steps(SGD(1e-9), 1, 5)}
    retraining = Retraining(chain, query, "pretrain", fits)
    assert retraining.losses([()], 1.0, 0)[0] == pytest.approx(float(query_loss(chain, query)), abs=1e-7)
    pulled = Retraining(chain, query, "pretrain", {**fits, "finetune": Steps(SGD(0.1), 9, 5)}).losses(
        [(), (2,)], 1.0, 0
    )
    assert abs(float(pulled[1] - pulled[0])) > 1e-6

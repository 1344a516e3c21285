"""A model in training mode is evaluated in eval mode, which is said, and left as it was."""

import warnings
from copy import deepcopy

import pytest
import torch
from torch import Tensor, nn

from stagetrace.errors import StagetraceWarning
from tests.refusals.described import Described


class Wavering(nn.Module):
    """A network that behaves otherwise in training mode."""

    def __init__(self, wavers: nn.Module) -> None:
        super().__init__()
        self.embedding, self.wavers, self.head = nn.Linear(4, 3), wavers, nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.wavers(torch.tanh(self.embedding(x))))


@pytest.mark.parametrize("wavers", [nn.Dropout(0.5), nn.BatchNorm1d(3)], ids=lambda layer: type(layer).__name__)
def test_a_model_in_training_mode_is_evaluated_in_eval_mode_and_left_as_it_was(wavers: nn.Module):
    torch.manual_seed(0)
    model = Wavering(wavers).double()
    model(torch.randn(50, 4, dtype=torch.float64))  # running statistics that are not the starting ones
    described = Described()
    described.pretrain["model"], described.finetune["model"] = model, deepcopy(model)
    before = deepcopy(model.state_dict())
    with pytest.warns(StagetraceWarning, match=f"training mode and has {type(wavers).__name__}.*eval mode") as said:
        in_training = described.trace()
    assert [name for name in ("pretrain", "finetune") if any(f"'{name}'" in str(w.message) for w in said)] == [
        "pretrain",
        "finetune",
    ]
    assert all(module.training for module in model.modules())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    described.pretrain["model"].eval()
    described.finetune["model"].eval()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        in_eval = described.trace()
    for name in in_eval:
        torch.testing.assert_close(in_training[name].values, in_eval[name].values, rtol=0, atol=0)

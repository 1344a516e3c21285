"""What cannot be run backwards is refused by name, with what to use instead."""

import re
from collections.abc import Mapping
from inspect import unwrap
from typing import Any

import pytest
import torch
from torch import Tensor, nn, optim

from stagetrace.errors import DescriptionError
from stagetrace.recording.optimizers import Adjoint, State, class_of, rule_for, rule_of
from stagetrace.recording.optimizers.named import RULES, name_of
from stagetrace.recording.optimizers.settings import check_options
from stagetrace.recording.optimizers.sgd import SGD


def parameter(dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.ones(3, 2, dtype=dtype, requires_grad=True)


@pytest.mark.parametrize(
    ("name", "reason", "instead"),
    [
        ("torch.optim.rprop.Rprop", "signs of gradients", "torch.optim.RMSprop"),
        ("torch.optim.lbfgs.LBFGS", "points that are not recorded", "torch.optim.SGD"),
        ("torch.optim.sparse_adam.SparseAdam", "sparse step", "nn.Embedding(..., sparse=False)"),
        ("torch.optim._muon.Muon", "orthogonal", "torch.optim.AdamW"),
        ("torch.optim._adafactor.Adafactor", "rows and columns", "torch.optim.AdamW"),
        ("transformers.optimization.Adafactor", "rows and columns", "torch.optim.AdamW"),
        ("lion_pytorch.lion_pytorch.Lion", "sign of a mean", "torch.optim.AdamW"),
        ("bitsandbytes.optim.adamw.AdamW8bit", "rounded to 8 bits", "torch.optim in 32 bits"),
        ("torchao.optim.adam.AdamW4bit", "rounded to 4 bits", "torch.optim in 32 bits"),
        ("apex.optimizers.FusedAdam", "not known here", "torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD"),
    ],
)
def test_a_class_without_a_rule_is_refused_by_name(name: str, reason: str, instead: str) -> None:
    with pytest.raises(DescriptionError) as caught:
        rule_of(name, "recording 'runs/a'")
    message = str(caught.value)
    assert message.startswith(f"recording 'runs/a': {name} cannot be run backwards")
    assert reason in message
    assert instead in message


def test_every_optimiser_of_pytorch_has_a_rule_or_a_reason() -> None:
    for name in optim.__all__:
        kind = getattr(optim, name)
        if isinstance(kind, type) and issubclass(kind, optim.Optimizer) and kind is not optim.Optimizer:
            if kind in RULES:
                assert rule_of(name_of(kind), "here") is RULES[kind]
            else:
                with pytest.raises(DescriptionError, match=r"cannot be run backwards: its step (?!is not known)"):
                    rule_of(name_of(kind), "here")


class OwnStep(optim.Adam):
    def step(self, closure: Any = None) -> None:
        super().step(closure)


class OwnStart(optim.SGD):
    def _init_group(self, *arguments: Any) -> bool:
        return super()._init_group(*arguments)


class OwnName(optim.AdamW):
    """Steps as its parent."""


@pytest.mark.parametrize(
    ("kind", "method", "parent"), [(OwnStep, "step", "torch.optim.Adam"), (OwnStart, "_init_group", "torch.optim.SGD")]
)
def test_a_subclass_with_a_step_of_its_own_is_refused(kind: Any, method: str, parent: str) -> None:
    with pytest.raises(
        DescriptionError, match=f"{kind.__name__} overrides {method} of {parent},.* train with {parent} "
    ):
        rule_for(kind([parameter()]))


def test_a_subclass_that_steps_as_its_parent_is_its_parent() -> None:
    # before and after PyTorch has wrapped the steps of both, and under a schedule, which wraps the object's
    for optimizer in (OwnName([parameter()]), optim.AdamW([parameter()]), OwnName([parameter()])):
        optim.lr_scheduler.ConstantLR(optimizer)
        assert class_of(optimizer) == "torch.optim.adamw.AdamW"
        assert rule_for(optimizer) is RULES[optim.AdamW]


def test_a_step_that_pytorch_wrapped_for_the_subclass_alone_is_its_parents() -> None:
    """As it does where the subclass is the first of its family in use."""
    profiled = optim.Optimizer.profile_hook_step(unwrap(optim.AdamW.step))
    first = type("First", (optim.AdamW,), {"step": profiled})
    assert class_of(first([parameter()])) == "torch.optim.adamw.AdamW"


def test_every_group_is_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    def check(rule: SGD, group: Mapping[str, Any], where: str) -> None:
        places[where] = group["lr"]

    places: dict[str, float] = {}
    monkeypatch.setattr(SGD, "check", check)
    rule_for(optim.SGD([{"params": [parameter()]}, {"params": [parameter()], "lr": 0.2}], lr=0.1))
    assert places == {"optimizer, parameter group 0": 0.1, "optimizer, parameter group 1": 0.2}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.complex64])
def test_other_precisions_are_refused(dtype: torch.dtype) -> None:
    words = rf"group 1: parameter 0, of shape \[3, 2\], is {dtype}: .* torch.autocast instead"
    with pytest.raises(DescriptionError, match=words):
        rule_for(optim.Adam([{"params": [parameter()]}, {"params": [parameter(dtype)]}]))
    low = torch.ones(2, dtype=dtype)
    made: list[Any] = list(RULES)
    for kind in made:
        group = kind([parameter()]).param_groups[0]
        with pytest.raises(DescriptionError, match=f"the parameter is {dtype}"):
            RULES[kind].pull_back(State(low), low, group, Adjoint(torch.ones(1, 2)))


def test_sparse_gradients_are_refused() -> None:
    layer = nn.Embedding(4, 2, sparse=True)
    layer(torch.tensor([1])).sum().backward()
    assert layer.weight.grad is not None
    with pytest.raises(
        DescriptionError, match=r"group 0: the gradient of parameter 0.* nn.Embedding\(..., sparse=False\)"
    ):
        rule_for(optim.SGD(layer.parameters()))
    group = optim.SGD(layer.parameters()).param_groups[0]
    with pytest.raises(DescriptionError, match="the gradient is sparse"):
        RULES[optim.SGD].pull_back(State(layer.weight.detach()), layer.weight.grad, group, Adjoint(torch.ones(1, 4, 2)))


def test_an_option_that_the_rule_does_not_know_is_refused() -> None:
    """As a later PyTorch may bring."""

    def cautious(params: Any, lr: float = 0.1, cautious: bool = False) -> optim.Optimizer:
        raise NotImplementedError

    group = {"lr": 0.2, "initial_lr": 0.3, "name": "head", "foreach": True}
    check_options(cautious, {"lr"}, {**group, "cautious": False}, "optimizer")
    with pytest.raises(
        DescriptionError, match=re.escape("cautious(cautious=True) has no adjoint; train with cautious=False")
    ):
        check_options(cautious, {"lr"}, {**group, "cautious": True}, "optimizer")


@pytest.mark.parametrize("kind", RULES)
def test_every_option_of_a_class_is_known(kind: Any) -> None:
    group = kind([parameter()]).param_groups[0]
    for name, value in group.items():
        if name != "params":
            RULES[kind].check({**group, name: not value if isinstance(value, bool) else (0.5, 0.6)}, "optimizer")

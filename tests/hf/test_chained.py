"""Adapters that go on from adapters: trained further, or others trained on top while the first stay active."""

import copy
from typing import Any

import peft
import pytest
import torch

from stagetrace import Chain, Frozen, Proximal, hf
from stagetrace.errors import DescriptionError
from tests.hf import tiny
from tests.hf.test_adapters import ROWS, agree, classifier, lora, stirred

pytestmark = [
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning"),  # peft on transformers 5
    pytest.mark.filterwarnings("ignore::stagetrace.errors.CurvatureWarning"),  # nothing here was trained
    pytest.mark.filterwarnings("ignore::UserWarning:peft"),
]


def bare(**settings: Any) -> Any:
    """Without saved modules, of which only one adapter's can be in use."""
    return lora(**{"task_type": None, **settings})


def adapted(**settings: Any) -> Any:
    return stirred(peft.get_peft_model(classifier(), bare(**settings)))


def stacked(before: Any, first: str = "sft", second: str = "dpo", **settings: Any) -> Any:
    """Adapters as another stage left them, under a name of this stage, and others beside; both in use."""
    after: Any = peft.get_peft_model(classifier(), bare(), adapter_name=first)
    ours, theirs = dict(after.named_parameters()), dict(before.named_parameters())
    with torch.no_grad():
        for name, parameter in ours.items():
            parameter.copy_(theirs[name.replace(f".{first}.", ".default.")])
    after.add_adapter(second, bare(**settings))
    after.base_model.set_adapter([first, second])
    tiny.stir(after, 0.3, only=f".{second}.")
    for name, parameter in after.named_parameters():
        parameter.requires_grad_(f".{second}." in name)
    return after.double().eval()


@pytest.mark.parametrize(("first", "second"), [("sft", "dpo"), ("old", "default")])
def test_adapters_beside_those_of_before_share_them(first: str, second: str):
    """Whatever both are called; the names that say it are the values."""
    before = adapted()
    after = stacked(before, first, second, target_modules=["query", "dense"], r=1)
    one = hf.stage("first", before, ROWS, weight_decay=0.7)
    two = hf.stage("second", after, ROWS[::-1], after=one, weight_decay=0.4)
    assert isinstance(two.link, Frozen)
    pairs = two.link.pairs
    assert {name for name in pairs if "lora_" in name} == {
        name for name, _ in after.named_parameters() if f".{first}." in name and "lora_" in name
    }
    assert set(pairs.values()) >= {name for name, p in before.named_parameters() if "lora_" in name}
    agree(one, two)


def test_both_trained_on_are_told_apart_by_name():
    before = adapted()
    after = stacked(before, "default", "new")
    tiny.stir(after.requires_grad_(True), 0.05, only="lora_A.default")
    one = hf.stage("first", before, ROWS, weight_decay=0.7)
    two = hf.stage("second", after, ROWS[::-1], after=one, alpha=0.2)
    assert isinstance(two.link, Proximal)
    bound = Chain(one, two).last
    assert set(bound.anchored_to) == {n for n, _ in after.named_parameters() if "lora_A.default" in n}
    assert not any(".new." in name for name in (*bound.anchored_to, *bound.inherited_from))
    other = stacked(before, "renamed", "new")
    tiny.stir(other, 0.05, only="renamed")
    with pytest.raises(
        DescriptionError,
        match=r"stage 'second': the adapter 'default' of the stage before .*'renamed', 'new' beside.*load_adapter",
    ):
        hf.stage("second", other, ROWS, after=one)


@pytest.mark.parametrize("modules", [None, ["classifier"]], ids=["adapters alone", "and saved modules"])
def test_the_same_adapters_trained_further(modules: Any):
    before = adapted(modules_to_save=modules)
    after = copy.deepcopy(before)
    tiny.stir(after, 0.1, only="lora_")
    tiny.stir(after, 0.1, only="modules_to_save")
    one = hf.stage("first", before, ROWS, weight_decay=0.7)
    two = hf.stage("second", after, ROWS[::-1], after=one, weight_decay=0.4, alpha=0.2)
    assert isinstance(two.link, Proximal)
    bound = Chain(one, two).last
    assert set(bound.anchored_to) == {name for name, p in after.named_parameters() if p.requires_grad}
    agree(one, two)


def test_saved_modules_go_on_in_the_merged_model():
    before = adapted(modules_to_save=["classifier"])
    after: Any = copy.deepcopy(before).merge_and_unload().requires_grad_(True)
    found = hf.shared(after, before)
    assert found["classifier.weight"] == "base_model.model.classifier.modules_to_save.default.weight"
    assert not found.moved
    assert not found.new
    assert all("original_module" not in str(origin) for origin in found.values())

"""Whole chains of Hugging Face stages: their scores are those of dense matrices, and come from folders alone."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import peft
import pytest
import torch

from stagetrace import Chain, Frozen, Hessian, Lanczos, Proximal, hf, trace
from stagetrace.errors import DescriptionError
from tests.hf import dense, tiny

pytestmark = [
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning"),  # peft on transformers 5
    pytest.mark.filterwarnings("ignore::stagetrace.errors.CurvatureWarning"),  # nothing here was trained
]

DECAYS = (0.7, 0.4)  # what keeps the Hessians of untrained models invertible
SHORT = tuple(text for text in tiny.TEXTS if 2 <= len(text.split()) < 6)
DATA = {"plain": tiny.rows(texts=SHORT), "labelled": tiny.rows(2, texts=SHORT)}
QUERY = [{"text": "the good cat", "label": 1}, {"text": "a bad mat ran", "label": 0}]


def lora(model: Any, **settings: Any) -> Any:
    """Adapters that have been trained: both factors are away from their start."""
    adapted = peft.get_peft_model(model, peft.LoraConfig(task_type="SEQ_CLS", r=2, **settings))
    tiny.stir(adapted, 0.3, only="lora_")
    tiny.stir(adapted, 0.3, only="modules_to_save")
    return adapted


def bert_to_lora(before: Any) -> Any:
    base = tiny.grown("BertForSequenceClassification", before)
    return lora(base, target_modules=["query", "value"], modules_to_save=["classifier", "pooler"])


def classifier_to_lora(before: Any) -> Any:
    base = tiny.grown("BertForSequenceClassification", before)
    base.load_state_dict(before.state_dict())
    return lora(base, target_modules=["query", "dense"])


@dataclass(frozen=True)
class Case:
    """A chain: the first model, how the second is made from it, the link that is to be found, and shared names."""

    first: str
    grow: Callable[[Any], Any]
    link: type
    first_data: str = "plain"
    plain: Callable[[str], str] = lambda name: name


def without_lora(name: str) -> str:
    return name.removeprefix("base_model.model.").replace(".base_layer", "").replace(".modules_to_save.default", "")


def grown(name: str, by: float) -> Callable[[Any], Any]:
    return lambda before: tiny.grown(name, before, by)


CASES = {
    "bert, masks to classes, frozen": Case("BertForMaskedLM", grown("BertForSequenceClassification", 0.0), Frozen),
    "bert, masks to classes, proximal": Case("BertForMaskedLM", grown("BertForSequenceClassification", 0.1), Proximal),
    "gpt2, next tokens to classes, proximal": Case(
        "GPT2LMHeadModel", grown("GPT2ForSequenceClassification", 0.1), Proximal
    ),
    "bert, masks to adapters, frozen": Case("BertForMaskedLM", bert_to_lora, Frozen, plain=without_lora),
    "bert, classes to adapters, head moved": Case(
        "BertForSequenceClassification", classifier_to_lora, Proximal, "labelled", without_lora
    ),
}


def models(case: Case) -> tuple[Any, Any]:
    before = tiny.model(case.first)
    after = case.grow(before)
    return before.double(), after.double()


def tokenizer_of(case: Case) -> Any:
    return tiny.tokenizer(marks=case.first.startswith("Bert"))


@cache
def error(name: str) -> float:
    """The largest error of a score, over the largest score of its stage."""
    case = CASES[name]
    before, after = models(case)
    settings = {"tokenizer": tokenizer_of(case)}
    settings["reduction"] = "mean"
    first = hf.stage("first", before, DATA[case.first_data], weight_decay=DECAYS[0], **settings)
    second = hf.stage("second", after, DATA["labelled"], after=first, alpha=0.2, weight_decay=DECAYS[1], **settings)
    query = hf.query(QUERY, stage=second)
    result = trace(Chain(first, second), query, curvature=Hessian(), solver=tiny.INVERSE)

    theirs = dict(before.named_parameters())
    shared = {n: case.plain(n) for n, _ in after.named_parameters() if case.plain(n) in theirs and "original" not in n}
    equal = {n for n, other in shared.items() if torch.equal(dict(after.named_parameters())[n], theirs[other])}
    moved = {n: other for n, other in shared.items() if n not in equal}
    trained = [n for n, p in after.named_parameters() if p.requires_grad and n not in equal]
    assert isinstance(second.link, case.link)
    assert bool(moved) == (case.link is Proximal)
    expected = dense.scores(
        dense.Side(before, list(first.data), DECAYS[0], list(theirs)),
        dense.Side(after, list(second.data), DECAYS[1], trained),
        list(query.data),
        {n: shared[n] for n in equal},
        moved,
        alpha=0.2,
    )
    worst = 0.0
    for stage, values in zip(("first", "second"), expected, strict=True):
        largest = float(values.abs().max())
        assert largest > 1e-6
        worst = max(worst, float((result[stage].values - values.detach()).abs().max()) / largest)
    return worst


QUICK = {"bert, masks to classes, proximal"}


@pytest.mark.parametrize("name", [pytest.param(k, marks=() if k in QUICK else pytest.mark.slow) for k in CASES])
def test_scores_are_those_of_dense_matrices(name: str):
    assert error(name) <= 1e-5


def saved_chain(folder: Path, before: Any, after: Any, tokenizer: Any) -> Chain:
    """The chain from two folders, as a user has them."""
    first = hf.stage("first", tiny.saved(folder / "first", before, tokenizer), DATA["plain"])
    second = hf.stage("second", tiny.saved(folder / "second", after, tokenizer), DATA["labelled"], after=first)
    return Chain(first, second)


@pytest.mark.parametrize(
    ("first", "second", "by"),
    [
        pytest.param("BertForMaskedLM", "BertForSequenceClassification", 0.0, id="bert, frozen"),
        pytest.param(
            "GPT2LMHeadModel", "GPT2ForSequenceClassification", 0.1, id="gpt2, proximal", marks=pytest.mark.slow
        ),
        pytest.param("LlamaForCausalLM", "LlamaForSequenceClassification", 0.1, id="llama, proximal"),
    ],
)
def test_folders_are_all_that_is_needed(first: str, second: str, by: float, tmp_path: Path):
    before = tiny.model(first)
    chain = saved_chain(
        tmp_path, before, tiny.grown(second, before, by), tiny.tokenizer(marks=first.startswith("Bert"))
    )
    assert isinstance(chain.last.stage.link, Proximal if by else Frozen)
    query = hf.query(QUERY, stage=chain.last.stage, reduction="none")
    result = trace(chain, query, solver=Lanczos(damping=1.0))
    for name, number in (("first", len(SHORT)), ("second", len(SHORT))):
        assert result[name].values.shape == (2, number)
        assert bool((result[name].values != 0).any(dim=1).all())


def test_adapters_and_their_base_come_from_folders(tmp_path: Path):
    """The base is still that of the language model: the new head is in the adapters' file."""
    before, tokenizer = tiny.model("BertForMaskedLM"), tiny.tokenizer()
    base = tiny.saved(tmp_path / "first", before, tokenizer)
    settings = {"num_labels": 2}
    after = tiny.grown("BertForSequenceClassification", before, **settings)
    after.name_or_path = base
    adapted = lora(after, target_modules=["query"], modules_to_save=["classifier", "pooler"], lora_dropout=0.1)
    adapted.save_pretrained(tmp_path / "adapters")
    first = hf.stage("first", base, DATA["plain"])
    second = hf.stage("second", tmp_path / "adapters", DATA["labelled"], after=first)
    theirs = dict(adapted.named_parameters())
    assert not any(module.training for module in second.model.modules())
    for name, parameter in second.model.named_parameters():
        if "original_module" not in name:
            assert torch.equal(parameter, theirs[name])
            assert parameter.requires_grad == theirs[name].requires_grad
    torch.manual_seed(5)
    again = hf.stage("second", tmp_path / "adapters", DATA["labelled"], after=first)
    for name, parameter in again.model.named_parameters():
        assert torch.equal(parameter, second.model.get_parameter(name)), "a run is recognised by every parameter"
    bound = Chain(first, second)["second"]
    assert isinstance(second.link, Frozen)
    assert all("lora_" in name or "modules_to_save" in name for name in bound.trained_values)
    result = trace(Chain(first, second), hf.query(QUERY, stage=second), solver=Lanczos(damping=1.0))
    assert bool((result["first"].values != 0).any())


def test_adapters_without_their_head_are_refused(tmp_path: Path):
    """What neither the base nor the adapters bring would be drawn anew: here the pooler."""
    before = tiny.model("BertForMaskedLM")
    base = tiny.saved(tmp_path / "first", before, tiny.tokenizer())
    after = tiny.grown("BertForSequenceClassification", before)
    after.name_or_path = base
    lora(after, target_modules=["query"]).save_pretrained(tmp_path / "adapters")
    with pytest.raises(DescriptionError, match=r"lacks weights, which would be random: bert.pooler.dense.bias"):
        hf.stage("second", tmp_path / "adapters", DATA["labelled"])


@pytest.mark.slow
def test_a_chain_is_the_same_after_a_pause(tmp_path: Path):
    """A run from folders is resumed: models, data, masks and links are recognised."""
    before, tokenizer = tiny.model("BertForMaskedLM"), tiny.tokenizer()
    after = tiny.grown("BertForSequenceClassification", before, 0.1)
    values = []
    for _ in range(2):
        chain = saved_chain(tmp_path, before, after, tokenizer)
        query = hf.query(QUERY, stage=chain.last.stage)
        values.append(trace(chain, query, solver=Lanczos(damping=1.0), out=tmp_path / "run")["first"].values)
    assert torch.equal(*values)

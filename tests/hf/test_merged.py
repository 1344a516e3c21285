"""Weights that adapters were merged into are functions of base and adapters, those that peft merges, in derivative too.

The truth is `merge_and_unload()` itself, and its difference quotients.
"""

import copy
from typing import Any

import peft
import pytest
import torch
from torch import Tensor

from stagetrace import Chain, Frozen, Hessian, Proximal, hf, trace
from stagetrace.errors import DescriptionError
from stagetrace.stages.links.computed import Computed
from tests.hf import dense, tiny
from tests.hf.test_adapters import ROWS, classifier, ia3, lora, own_names, stirred

pytestmark = [
    pytest.mark.filterwarnings("ignore::stagetrace.errors.CurvatureWarning"),  # nothing here was trained
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning"),  # peft on transformers 5
    pytest.mark.filterwarnings("ignore::UserWarning:peft"),
]

LAYERS: dict[str, Any] = {"target_modules": ["query", "value"], "task_type": "SEQ_CLS"}
KINDS: dict[str, Any] = {
    "lora": lora(),
    "lora, its own biases": lora(bias="lora_only"),
    "lora, all biases": lora(bias="all"),
    "lora, a bias of its own": lora(lora_bias=True),
    "lora, ranks by pattern": lora(rank_pattern={"query": 1}, alpha_pattern={"value": 4}, use_rslora=True),
    "lora on embeddings": lora(target_modules=["word_embeddings", "position_embeddings"]),
    "lora, token rows": lora(trainable_token_indices=[0, 7]),
    "lora, saved modules": lora(modules_to_save=["classifier", "pooler"]),
    "token rows alone": peft.TrainableTokensConfig(
        token_indices=[5, 7], target_modules=["word_embeddings"], task_type="SEQ_CLS"
    ),
    "dora": lora(use_dora=True),
    "ia3": ia3(target_modules=["key", "output.dense"], feedforward_modules=["output.dense"]),
    "loha": peft.LoHaConfig(r=2, **LAYERS),
    "lokr": peft.LoKrConfig(r=2, decompose_factor=2, **LAYERS),
    "vera": peft.VeraConfig(r=2, **LAYERS),
    "oft": peft.OFTConfig(oft_block_size=2, **LAYERS),
    "boft": peft.BOFTConfig(boft_block_size=2, **LAYERS),
}


def adapted(base: Any, config: Any, seed: int = 3) -> Any:
    return stirred(peft.get_peft_model(copy.deepcopy(base), copy.deepcopy(config)), seed)


def merged(model: Any) -> Any:
    return copy.deepcopy(model).merge_and_unload().requires_grad_(True)


def check_derivative(before: Any, name: str, origin: Computed, step: float = 1e-5) -> None:
    """Value and `v' J d` of one merged weight; `J d` from merging at values on both sides along d."""
    theirs, drawn = dict(before.named_parameters()), torch.Generator().manual_seed(1)
    value = dict(merged(before).named_parameters())[name].detach()
    torch.testing.assert_close(origin.value(theirs), value, rtol=1e-12, atol=1e-12)
    vectors = torch.randn(2, *value.shape, generator=drawn, dtype=value.dtype)
    found = origin.pulled_back(theirs, vectors)
    along = {other: torch.randn(theirs[other].shape, generator=drawn, dtype=value.dtype) for other in origin.of}
    ends: list[Tensor] = []
    for sign in (1, -1):
        moved = copy.deepcopy(before)
        with torch.no_grad():
            for other, d in along.items():
                moved.get_parameter(other).add_(sign * step * d)
        ends.append(dict(merged(moved).named_parameters())[name].detach())
    slope = (ends[0] - ends[1]) / (2 * step)
    for vector, place in zip(vectors, range(2), strict=True):
        got = sum(float((found[other][place] * d).sum()) for other, d in along.items())
        assert got == pytest.approx(float((vector * slope).sum()), rel=1e-6)


QUICK = {"lora, a bias of its own", "lora on embeddings", "lora, token rows", "dora", "ia3", "lokr"}


@pytest.mark.parametrize("kind", [pytest.param(k, marks=() if k in QUICK else pytest.mark.slow) for k in KINDS])
def test_a_merged_weight_is_a_function_of_its_parts(kind: str):
    before = adapted(classifier(), KINDS[kind])
    after = merged(before)
    found = hf.shared(after, before)
    assert not found.moved
    assert not found.new
    assert len(found) == len(dict(after.named_parameters()))
    computed = {name: origin for name, origin in found.items() if isinstance(origin, Computed)}
    trained = {n for n, p in before.named_parameters() if p.requires_grad}
    assert trained <= set(before.state_dict()) - set(found.left)
    for name, origin in list(computed.items())[-2:]:  # the last ones, a weight and a bias where both are merged
        check_derivative(before, name, origin)


def test_kinds_that_are_not_known_are_refused():
    before = adapted(classifier(), peft.FourierFTConfig(n_frequency=3, **LAYERS))
    with pytest.raises(DescriptionError, match=r"query' has adapters of a kind .*no right derivative.*merged folder"):
        hf.shared(merged(before), before)


class TestWhetherTheyWereMerged:
    """Asked of all layers together, and to rounding."""

    @staticmethod
    def both(dtype: torch.dtype = torch.float64) -> tuple[Any, Any]:
        before = adapted(classifier(), lora()).to(dtype)
        return before, merged(before)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    @pytest.mark.parametrize("through", [None, torch.float32, torch.float64], ids=["itself", "float32", "float64"])
    def test_merging_may_have_rounded(self, dtype: torch.dtype, through: Any):
        """peft rounds where it adds; another program merges in more digits."""
        before, _ = self.both(dtype)
        after = copy.deepcopy(before).to(through or dtype).merge_and_unload().to(dtype)
        assert not hf.shared(after, before).moved  # nothing requires a gradient, as merging leaves it
        stage = hf.stage("s", peft.get_peft_model(after, lora()), ROWS, after=hf.stage("f", before, ROWS))
        assert isinstance(stage.link, Frozen)
        assert len(stage.link.computed) == 2

    @pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
    def test_a_small_step_further_is_one(self, dtype: torch.dtype):
        before, after = self.both(dtype)
        assert not hf.shared(after, before).moved
        for name in ("query", "value"):
            weight = after.get_parameter(f"bert.encoder.layer.0.attention.self.{name}.weight")
            with torch.no_grad():
                weight[0, 0] += 3 * weight.abs().max() * torch.finfo(dtype).eps
        tiny.stir(after, 0.01, only="classifier")
        moved = hf.shared(after, before).moved
        assert len([name for name in moved if "self" in name]) == 2

    def test_adapters_that_were_left_out_are_left_behind(self):
        before, _ = self.both()
        base = classifier()
        tiny.stir(base, 0.001, only="query")
        found = hf.shared(base, before)
        assert all(isinstance(origin, str) for origin in found.values())
        assert len([name for name in found.left if "lora_" in name]) == 4

    def test_half_merged_weights_are_refused(self):
        before, after = self.both()
        base = dict(classifier().named_parameters())
        with torch.no_grad():
            for name, parameter in after.named_parameters():
                parameter.copy_((parameter + base[name]) / 2)
        with pytest.raises(DescriptionError, match=r"50% of the way.*merge by model.merge_and_unload\(\)"):
            hf.shared(after, before)

    def test_adapters_of_the_same_name_on_top_are_others(self):
        """Both are called "default" and have one shape; the first are in the weights."""
        before, after = self.both()
        again = adapted(after, lora(), seed=9)
        found = hf.shared(again, before)
        assert {name for name in found.new if "lora_" in name} == {
            n for n, _ in again.named_parameters() if "lora_" in n
        }
        assert len([origin for origin in found.values() if isinstance(origin, Computed)]) == 2
        assert "merged, kept" in str(found)
        third = hf.shared(merged(again), again)
        assert len([origin for origin in third.values() if isinstance(origin, Computed)]) == 2
        assert not third.moved


def plain(name: str) -> str:
    return name.removeprefix("base_model.model.").replace(".base_layer", "")


class TestChains:
    """base -> adapters -> merged and trained further, or other adapters on top: against dense matrices."""

    @staticmethod
    def scores(last: Any, adapters: Any, base: Any, link: type) -> None:
        first = hf.stage("base", base, ROWS, weight_decay=0.8)
        second = hf.stage("adapters", adapters, ROWS[1:], after=first, weight_decay=0.7)
        third = hf.stage("last", last, ROWS[::-1], after=second, weight_decay=0.6, alpha=0.3)
        assert isinstance(third.link, link)
        chain, query = Chain(first, second, third), hf.query(ROWS[:2], stage=third)
        result = trace(chain, query, curvature=Hessian(), solver=tiny.INVERSE)

        def origin(name: str) -> Any:
            inside = f"base_model.model.{plain(name)}"
            if not any(part in inside for part in ("query", "value")):
                return inside
            path, _, last = inside.rpartition(".")
            if last == "bias":
                return f"{path}.base_layer.bias"
            names = (f"{path}.base_layer.weight", *(f"{path}.lora_{x}.default.weight" for x in "AB"))
            return names, lambda weight, a, b: weight + 4.0 * b @ a  # lora_alpha / r

        names = [n for n, p in last.named_parameters() if "lora_" not in n]
        before = dict(adapters.named_parameters())
        moved = {n: origin(n) for n in names if last.get_parameter(n).requires_grad}
        kept = {n: origin(n) for n in names if n not in moved}
        inside = {
            f"base_model.model.{n}".replace("query.", "query.base_layer.").replace("value.", "value.base_layer."): n
            for n, _ in base.named_parameters()
        }
        assert inside.keys() <= before.keys()
        expected = dense.scores_of_chain(
            [
                dense.Side(base, list(first.data), 0.8, own_names(base)),
                dense.Side(adapters, list(second.data), 0.7, own_names(adapters)),
                dense.Side(last, list(third.data), 0.6, own_names(last)),
            ],
            [(inside, {}), (kept, moved)],
            list(query.data),
            alpha=0.3,
        )
        for stage, values in zip(("base", "adapters", "last"), expected, strict=True):
            values = values.detach()
            size = float(values.abs().max())
            assert size > 1e-6
            assert float((result[stage].values - values).abs().max()) <= 1e-5 * size

    @staticmethod
    def adapters(base: Any) -> Any:
        return adapted(base, peft.LoraConfig(r=2, target_modules=["query", "value"], lora_alpha=8))

    def test_all_parameters_trained_further(self):
        base = classifier()
        adapters = self.adapters(base)
        last = merged(adapters)
        for name, parameter in last.named_parameters():
            parameter.requires_grad_(any(part in name for part in ("query", "value.weight", "classifier")))
        tiny.stir(last, 0.05, only="query")
        tiny.stir(last, 0.05, only="value.weight")
        tiny.stir(last, 0.05, only="classifier")
        self.scores(last, adapters, base, Proximal)

    def test_other_adapters_on_top(self):
        base = classifier()
        adapters = self.adapters(base)
        last = adapted(merged(adapters), peft.LoraConfig(r=1, target_modules=["value", "dense"]), seed=5)
        self.scores(last, adapters, base, Frozen)

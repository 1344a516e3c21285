"""Kinds of adapters: their scores are those of dense matrices, or they are refused with what to type."""

import copy
from functools import cache
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
    pytest.mark.filterwarnings("ignore::UserWarning:peft"),
]

ROWS = [{"input_ids": [2, 5 + i, 7, 9, 3][: 4 + i % 2], "labels": i % 2} for i in range(4)]
LAYERS: dict[str, Any] = {"target_modules": ["query", "value"], "task_type": "SEQ_CLS"}


def lora(**settings: Any) -> Any:
    given: dict[str, Any] = {"r": 2, **LAYERS, **settings}
    return peft.LoraConfig(**given)


def ia3(**settings: Any) -> Any:
    given: dict[str, Any] = {**LAYERS, **settings}
    return peft.IA3Config(**given)


KINDS: dict[str, Any] = {
    "lora": lora(),
    "lora, all biases": lora(bias="all"),
    "lora, its own biases": lora(bias="lora_only"),
    "lora, ranks by pattern": lora(rank_pattern={"query": 1}, alpha_pattern={"value": 4}, use_rslora=True),
    "lora, dropout": lora(lora_dropout=0.5),
    "lora, some layers": lora(layers_to_transform=[0]),
    "lora, token rows": lora(trainable_token_indices=[5, 7]),
    "lora on embeddings": lora(target_modules=["word_embeddings"]),
    "dora": lora(use_dora=True),
    "ia3": ia3(target_modules=["key", "output.dense"], feedforward_modules=["output.dense"]),
    "vera": peft.VeraConfig(r=2, **LAYERS),
    "loha": peft.LoHaConfig(r=1, **LAYERS),
    "token rows alone": peft.TrainableTokensConfig(
        token_indices=[5, 7], target_modules=["word_embeddings"], task_type="SEQ_CLS"
    ),
    "norms": peft.LNTuningConfig(target_modules=["LayerNorm"], task_type="SEQ_CLS"),
}


def stirred(model: Any, seed: int = 3) -> Any:
    """Adapters away from their start, as training leaves them; the rest as it was."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator).to(parameter), alpha=0.3)
    return model.double().eval()


def classifier() -> Any:
    """A model of which some was trained: what adapters stand on, and as little else as will do."""
    model = tiny.model("BertForSequenceClassification").double()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(any(part in name for part in ("query", "value", "word_embeddings", "classifier")))
    return model


def own_names(model: Any) -> list[str]:
    return [name for name, parameter in model.named_parameters() if parameter.requires_grad]


def agree(first: Any, second: Any, oracle_of_second: Any = None) -> None:
    """The scores of a chain of two stages are those of dense matrices."""
    assert apart(first, second, oracle_of_second) <= 1e-5


def apart(first: Any, second: Any, oracle_of_second: Any = None) -> float:
    """The largest error of a score of a chain of two stages, over the largest score of its stage."""
    query = hf.query(ROWS[:1], stage=second)
    result = trace(Chain(first, second), query, curvature=Hessian(), solver=tiny.INVERSE)
    bound = Chain(first, second)["second"]
    expected = dense.scores(
        dense.Side(first.model, list(first.data), first.weight_decay, own_names(first.model)),
        dense.Side(
            oracle_of_second or second.model, list(second.data), second.weight_decay, list(bound.trained_values)
        ),
        list(query.data),
        bound.inherited_from,
        bound.anchored_to,
        alpha=float(bound.link_settings.get("alpha", 0.0)),
    )
    errors: list[float] = []
    for stage, values in zip(("first", "second"), expected, strict=True):
        size = float(values.abs().max())
        assert size > 1e-8
        errors.append(float((result[stage].values - values.detach()).abs().max()) / size)
    return max(errors)


@cache
def error(kind: str) -> float:
    """That of adapters of a kind on their base."""
    base = classifier()
    after = stirred(peft.get_peft_model(copy.deepcopy(base), copy.deepcopy(KINDS[kind])))
    first = hf.stage("first", base, ROWS, weight_decay=0.7)
    second = hf.stage("second", after, ROWS[::-1], after=first, weight_decay=0.4, alpha=0.2)
    shared = set(second.link.pairs.values())  # pyright: ignore[reportOptionalMemberAccess]
    assert shared == {name for name, _ in base.named_parameters()}, "every weight of the base is found"
    return apart(first, second, second.evaluated if "dora" in kind else None)


QUICK = {"lora", "lora, token rows", "dora"}
"""Others differ from one of these in a setting or in the formula of the adapter, which PEFT computes."""


@pytest.mark.parametrize("kind", [pytest.param(k, marks=() if k in QUICK else pytest.mark.slow) for k in KINDS])
def test_scores_are_those_of_dense_matrices(kind: str):
    assert error(kind) <= 1e-5


def test_the_derivative_of_a_weight_s_norm_is_taken_too():
    """peft takes DoRA's norm for a constant in its backward pass; a finite difference of the loss does not."""
    after = stirred(peft.get_peft_model(classifier(), lora(use_dora=True)))
    stage = hf.stage("s", after, ROWS)
    batch = stage.collate(list(stage.data))  # pyright: ignore[reportOptionalCall]
    for model, right in ((stage.evaluated, True), (after, False)):
        weights = [p.requires_grad_() for name, p in model.named_parameters() if "query" in name]
        along = [torch.randn(p.shape, dtype=p.dtype) for p in weights]
        gradient = torch.autograd.grad(stage.loss.losses(stage.loss.outputs(model, batch), batch).mean(), weights)
        slope = sum(float((g * a).sum()) for g, a in zip(gradient, along, strict=True))
        values = []
        with torch.no_grad():
            for step in (1e-5, -2e-5):
                for p, a in zip(weights, along, strict=True):
                    p.add_(step * a)
                values.append(float(stage.loss.losses(stage.loss.outputs(model, batch), batch).mean()))
            for p, a in zip(weights, along, strict=True):
                p.add_(1e-5 * a)
        difference = (values[0] - values[1]) / 2e-5
        assert (abs(slope - difference) < 1e-6 * abs(difference)) is right


def test_an_adapter_that_the_model_added_itself_is_one():
    """`model.add_adapter(...)` of transformers makes no `PeftModel`: the same scores."""
    base, settings = classifier(), peft.LoraConfig(r=2, target_modules=["query", "value"])
    torch.manual_seed(1)
    wrapped, native = peft.get_peft_model(copy.deepcopy(base), settings), copy.deepcopy(base)
    torch.manual_seed(1)
    native.add_adapter(settings)
    for model in (native, wrapped):
        stirred(model)
    values = []
    for model in (native, wrapped):
        first = hf.stage("first", base, ROWS, weight_decay=0.7)
        second = hf.stage("second", model, ROWS[::-1], after=first, weight_decay=0.4)
        assert isinstance(second.link, Frozen)
        assert len(second.link.pairs) == len(dict(base.named_parameters()))
        values.append(
            trace(Chain(first, second), hf.query(ROWS[:1], stage=second), curvature=Hessian(), solver=tiny.INVERSE)
        )
    for stage in ("first", "second"):
        torch.testing.assert_close(values[0][stage].values, values[1][stage].values)


def test_what_merging_left_without_a_gradient_is_refused():
    base = classifier()
    merged: Any = stirred(peft.get_peft_model(copy.deepcopy(base), lora())).merge_and_unload()
    first = hf.stage("base", base, ROWS)
    with pytest.raises(DescriptionError, match=r"requires_grad=False; .*type: model.requires_grad_\(True\)"):
        hf.stage("second", merged, ROWS, after=first)
    second = hf.stage("second", merged.requires_grad_(True), ROWS, after=first)
    assert isinstance(second.link, Proximal)


def switched_off(model: Any) -> Any:
    model.base_model.disable_adapter_layers()
    return model


def merged_in_place(model: Any) -> Any:
    model.merge_adapter()
    return model


def on_meta(model: Any) -> Any:
    return model.to("meta")


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (switched_off, r"switched off .*model.enable_adapters\(\)"),
        (merged_in_place, r"merged into the weights .*model.unmerge_adapter\(\)"),
        (on_meta, "not in memory"),
    ],
)
def test_a_model_that_is_not_what_was_trained_is_refused(spoil: Any, says: str):
    with pytest.raises(DescriptionError, match=says) as caught:
        hf.stage("s", spoil(stirred(peft.get_peft_model(classifier(), lora()))), ROWS)
    assert str(caught.value).startswith("stage 's': ")


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (peft.AdaLoraConfig(**LAYERS, total_step=9), "penalty on the adapters' orthogonality"),
        (lora(target_modules=["word_embeddings"], use_dora=True), "DoRA on a layer that is not linear"),
        (lora(target_modules=[], target_parameters=["query.weight"]), "LoRA on a parameter"),
    ],
    ids=["adalora", "dora on embeddings", "parameters"],
)
def test_kinds_that_no_derivative_is_right_for_are_refused(settings: Any, says: str):
    with pytest.raises(DescriptionError, match=f"stage 's': .*{says}.*merge_and_unload"):
        hf.stage("s", stirred(peft.get_peft_model(classifier(), settings)), ROWS)


class TestGrownVocabulary:
    """The rows of before are shared, those that were added are new."""

    @staticmethod
    def grown(model: Any, by: int = 2) -> Any:
        after = copy.deepcopy(model)
        after.resize_token_embeddings(tiny.SIZE + by, mean_resizing=False)
        return after

    @pytest.mark.parametrize("name", ["GPT2LMHeadModel", "BertForMaskedLM", "LlamaForCausalLM"])
    @pytest.mark.parametrize("stir", [0.0, 0.1], ids=["kept", "moved"])
    def test_is_cut_at_every_place_it_stands(self, name: str, stir: float):
        before = tiny.model(name)
        after = self.grown(before)
        tiny.stir(after, stir, only="word_embeddings" if "Bert" in name else "wte" if "GPT" in name else "embed")
        rows = [{"input_ids": [2, 7, tiny.SIZE + 1, 9], "labels": [2, 7, tiny.SIZE + 1, 9]}]
        first = hf.stage("first", before, [{"input_ids": [2, 7, 9], "labels": [2, 7, 9]}])
        second = hf.stage("second", after, rows, after=first)
        pairs = second.link.pairs  # pyright: ignore[reportOptionalMemberAccess]
        assert {name for name, _ in before.named_parameters()} == set(pairs.values())
        new = [name for name, _ in second.model.named_parameters() if name not in pairs]
        assert new
        assert all(name.endswith("original1") for name in new)
        assert not any("parametrizations" in name for name, _ in after.named_parameters()), "the user's is as it was"
        batch = second.collate(list(second.data))  # pyright: ignore[reportOptionalCall]
        assert torch.equal(second.loss.outputs(second.model, batch), second.loss.outputs(after, batch))
        third = hf.stage("third", self.grown(after, 5), rows, after=second)
        assert set(third.link.pairs.values()) == {n for n, _ in second.model.named_parameters()}  # pyright: ignore[reportOptionalMemberAccess]

    def test_gives_the_scores_of_a_table_that_had_the_rows_all_along(self):
        """Rows that the first stage never reads change nothing there: with the table kept, both chains are one."""
        before, grown = classifier(), self.grown(classifier())
        after = copy.deepcopy(grown)
        tiny.stir(after, 0.2, only="classifier")
        after.bert.embeddings.word_embeddings.weight.requires_grad_(False)
        rows = [{"input_ids": [2, 7, tiny.SIZE + i, 3], "labels": i} for i in range(2)]
        values = []
        for model in (before, grown):
            first = hf.stage("first", model, ROWS, weight_decay=0.7)
            second = hf.stage("second", after, rows, after=first, weight_decay=0.4, alpha=0.2)
            chain = Chain(first, second)
            result = trace(chain, hf.query(rows, stage=second), curvature=Hessian(), solver=tiny.INVERSE)
            values.append([result[name].values for name in ("first", "second")])
        torch.testing.assert_close(values[0], values[1])

    def test_below_modules_that_were_trained_beside_adapters(self):
        """Both tables are copies that adapters were trained beside; a query of the added rows reaches the old ones."""
        before = tiny.model("LlamaForCausalLM").double()
        settings = peft.LoraConfig(r=1, target_modules=["v_proj"], modules_to_save=["embed_tokens", "lm_head"])
        after = stirred(peft.get_peft_model(self.grown(before), settings))
        rows = [{"input_ids": [2, 7, tiny.SIZE + 1, 9], "labels": [2, 7, tiny.SIZE + 1, 9]}]
        first = hf.stage("first", before, [{"input_ids": [2, 7, 9], "labels": [2, 7, 9]}], weight_decay=1.0)
        second = hf.stage("second", after, rows, after=first, weight_decay=1.0)
        bound = Chain(first, second).last
        tables = [name for name in bound.trained_values if "parametrizations" in name]
        assert len(tables) == 4
        assert {name.endswith("original0") for name in tables if name in bound.anchored_to} == {True}
        assert tables == [name for name, _ in second.evaluated.named_parameters() if "parametrizations" in name]
        result = trace(Chain(first, second), hf.query(rows, stage=second), solver=Lanczos(damping=1.0))
        assert bool((result["first"].values != 0).all())

    def test_of_another_kind_is_said(self):
        before = tiny.model("GPT2LMHeadModel")
        after = tiny.model("GPT2LMHeadModel", n_positions=20)
        first = hf.stage("first", before, [{"input_ids": [2, 7, 9]}])
        with pytest.warns(UserWarning, match=r"'transformer.wpe.weight' has shape \[20, 4\], before it was \[16, 4\]"):
            hf.stage("second", after, [{"input_ids": [2, 7, 9]}], after=first)


class TestSoftPrompts:
    """Vectors before the text: those in every layer leave the logits alone, those in front do not."""

    @staticmethod
    def both(settings: Any) -> tuple[Any, Any]:
        base = tiny.model("GPT2LMHeadModel", n_positions=24, use_cache=False)
        return base.double(), stirred(peft.get_peft_model(copy.deepcopy(base), settings))

    def test_prefixes_have_the_model_s_own_loss(self):
        base, after = self.both(peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2))
        rows = [{"input_ids": [5, 6, 7, 8]}, {"input_ids": [9, 10, 11]}]
        first = hf.stage("first", base, rows)
        second = hf.stage("second", after, rows, after=first, reduction="mean")
        batch = second.collate(list(second.data))  # pyright: ignore[reportOptionalCall]
        losses = second.loss.losses(second.loss.outputs(after, batch), batch)
        alone = [after(**{k: torch.tensor([v]) for k, v in row.items()}).loss.double() for row in second.data]
        torch.testing.assert_close(losses, torch.stack(alone), rtol=1e-5, atol=1e-6)
        pairs = second.link.pairs  # pyright: ignore[reportOptionalMemberAccess]
        assert set(pairs.values()) == {n for n, _ in base.named_parameters()}

    @pytest.mark.parametrize(
        "settings",
        [
            peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2),
            peft.PromptEncoderConfig(task_type="CAUSAL_LM", num_virtual_tokens=2, encoder_hidden_size=3),
        ],
        ids=["prompt", "p-tuning"],
    )
    def test_prompts_in_front_are_refused_and_what_is_to_be_typed_is_their_loss(self, settings: Any):
        _, after = self.both(settings)
        rows = [{"input_ids": [5, 6, 7, 8]}]
        with pytest.raises(DescriptionError, match=r"no ready-made loss of tokens behind a soft prompt .*objective="):
            hf.stage("s", after, rows)

        def losses(model: Any, batch: Any) -> torch.Tensor:
            inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
            logits = model(**inputs).logits[:, -batch["labels"].shape[1] - 1 : -1]
            return torch.nn.functional.cross_entropy(logits.mT, batch["labels"], reduction="none").mean(dim=1)

        stage = hf.stage("s", after, rows, objective=losses)
        batch = stage.collate(list(stage.data))  # pyright: ignore[reportOptionalCall]
        torch.testing.assert_close(losses(after, batch)[0], after(**batch).loss.double(), rtol=1e-5, atol=1e-6)

"""Stages from Trainers that really trained."""

from pathlib import Path
from typing import Any, cast

import datasets
import pytest
import torch
import transformers
from torch import nn

from stagetrace import Chain, Frozen, Lanczos, Proximal, hf, trace
from stagetrace.errors import DescriptionError, StagetraceWarning
from stagetrace.objectives import Classification
from stagetrace.stages.coverage import notices
from tests.hf import tiny

pytestmark = pytest.mark.filterwarnings(
    "ignore::stagetrace.errors.CurvatureWarning",
    "ignore:'pin_memory' argument is set as true",
    "ignore:`is_gradient_checkpointing`:FutureWarning",
)


def tokenised(labels: int | None = None, marks: bool = True) -> datasets.Dataset:
    tokenizer = tiny.tokenizer(marks=marks)
    rows = [{**row, **tokenizer(row["text"])} for row in tiny.rows(labels)]
    return datasets.Dataset.from_list(rows)  # with the column 'text', which the Trainer removes


def trainer(
    folder: Path,
    model: Any,
    data: Any,
    collator: Any = None,
    *,
    cls: Any = transformers.Trainer,
    trained: bool = True,
    **settings: Any,
) -> Any:
    """A Trainer after a few steps; where it is refused for what it is, before any."""
    own = {name: settings.pop(name) for name in ("compute_loss_func",) if name in settings}
    arguments = transformers.TrainingArguments(
        output_dir=str(folder), max_steps=3, per_device_train_batch_size=4, learning_rate=0.01, use_cpu=True,
        report_to=[], save_strategy="no", disable_tqdm=True, logging_strategy="no", **settings,
    )  # fmt: skip
    collators = {} if collator is None else {"data_collator": collator}
    processing = {} if collator is not None else {"processing_class": tiny.tokenizer()}
    made = cls(model=model, args=arguments, train_dataset=data, **collators, **processing, **own)
    if trained:
        made.train()
    made.model.eval()  # else the library says that it evaluates a copy in this mode
    return made


def of_masks(folder: Path, **settings: Any) -> Any:
    collator = transformers.DataCollatorForLanguageModeling(tiny.tokenizer(), **settings)
    return trainer(folder, tiny.model("BertForMaskedLM"), tokenised(), collator)


@pytest.mark.slow
def test_two_trainers_are_a_chain(tmp_path: Path):
    pretrained = of_masks(tmp_path / "a", mlm_probability=0.3)
    model = tiny.grown("BertForSequenceClassification", pretrained.model)
    finetuned = trainer(tmp_path / "b", model, tokenised(2))
    with torch.no_grad():
        start = dict(pretrained.model.named_parameters())["bert.encoder.layer.0.output.dense.weight"]
        assert not torch.equal(start, dict(model.named_parameters())["bert.encoder.layer.0.output.dense.weight"])
    first = hf.from_trainer(pretrained, "first", weight_decay=0.1)
    second = hf.from_trainer(finetuned, "second", after=first, alpha=0.5)
    assert first.model is pretrained.model
    assert isinstance(second.link, Proximal)
    assert (second.link.alpha, first.weight_decay, second.weight_decay) == (0.5, 0.1, 0.0)
    query = hf.query(tokenised(2).select(range(3)), stage=second)
    with pytest.warns(StagetraceWarning) as said:
        result = trace(Chain(first, second), query, solver=Lanczos(damping=1.0))
    for what in ("the Trainer drew new masks in every epoch", "every token weighs the same"):
        assert any(what in str(one.message) for one in said)
    assert all(bool((result[name].values != 0).all()) for name in ("first", "second"))


def test_frozen_parameters_stay_shared_and_kept(tmp_path: Path):
    pretrained = of_masks(tmp_path / "a")
    model = tiny.grown("BertForSequenceClassification", pretrained.model)
    for parameter in model.bert.parameters():
        parameter.requires_grad_(False)
    first = hf.from_trainer(pretrained, "first")
    second = hf.from_trainer(trainer(tmp_path / "b", model, tokenised(2)), "second", after=first)
    assert isinstance(second.link, Frozen)
    assert set(Chain(first, second)["second"].trained_values) == {"classifier.weight", "classifier.bias"}


@pytest.mark.parametrize("kind", ["classes", "next tokens", "words"])
def test_an_example_s_loss_is_what_the_trainer_computes_for_it(kind: str, tmp_path: Path):
    if kind == "classes":
        made = trainer(tmp_path, tiny.model("BertForSequenceClassification"), tokenised(2))
    elif kind == "words":
        rows = [{"input_ids": [2, 7, 8, 3][: 2 + i % 3], "labels": [0, 1, -100, 1][: 2 + i % 3]} for i in range(6)]
        collator = transformers.DataCollatorForTokenClassification(tiny.tokenizer())
        made = trainer(tmp_path, tiny.model("BertForTokenClassification"), datasets.Dataset.from_list(rows), collator)
    else:
        collator = transformers.DataCollatorForLanguageModeling(tiny.tokenizer(marks=False), mlm=False)
        data = tokenised(marks=False).filter(lambda row: len(row["input_ids"]) > 2)
        made = trainer(tmp_path, tiny.model("GPT2LMHeadModel"), data, collator)
    stage = hf.from_trainer(made, "s", reduction="mean")
    (batch,) = stage.examples.read([range(len(stage.data))])
    assert "text" not in batch.content
    model = made.model.eval()
    with torch.no_grad():
        losses = stage.loss.losses(stage.loss.outputs(model, batch.content), batch.content)
        theirs = [made.compute_loss(model, dict(made.data_collator([stage.data[i]]))) for i in range(len(losses))]
    torch.testing.assert_close(losses, torch.stack(theirs), rtol=1e-5, atol=1e-5)


def test_masks_are_fixed_and_have_the_collator_s_shares(tmp_path: Path):
    made = of_masks(tmp_path, mlm_probability=0.4, mask_replace_prob=0.5, random_replace_prob=0.3)
    stage = hf.from_trainer(made, "s", seed=3)
    masking = hf.Masking(0.4, 3, masked=0.5, random=0.3)
    own = hf.stage("s", made.model, tiny.rows(), tokenizer=tiny.tokenizer(), masking=masking)
    assert list(stage.data) == list(own.data)
    assert stage.collate == own.collate
    assert any("drew new masks" in said and repr(masking) in said for said in notices(stage))
    assert notices(own) == []


class Own(transformers.Trainer):
    def compute_loss(self, *arguments: Any, **named: Any) -> Any:
        return super().compute_loss(*arguments, **named)


class OwnOfOwn(Own):
    pass


class OwnStep(transformers.Trainer):
    def training_step(self, *arguments: Any, **named: Any) -> Any:
        return super().training_step(*arguments, **named)


def halved(outputs: Any, labels: Any, num_items_in_batch: Any = None) -> torch.Tensor:
    return nn.functional.cross_entropy(outputs.logits, labels) / 2


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"cls": Own}, "Own has a compute_loss of its own; give objective="),
        ({"compute_loss_func": halved}, "a compute_loss_func of its own; give objective="),
        ({"cls": OwnOfOwn}, "OwnOfOwn has a compute_loss of its own.*objective=stagetrace.objectives.NextToken"),
        ({"cls": OwnStep}, "OwnStep has a training_step of its own"),
    ],
    ids=["compute_loss", "compute_loss_func", "inherited", "training_step"],
)
def test_another_loss_is_refused_until_it_is_given(settings: dict[str, Any], says: str, tmp_path: Path):
    made = trainer(tmp_path, tiny.model("BertForSequenceClassification"), tokenised(2), trained=False, **settings)
    with pytest.raises(DescriptionError, match=says):
        hf.from_trainer(made, "s")

    def losses(model: Any, batch: Any) -> torch.Tensor:
        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        return nn.functional.cross_entropy(logits, batch["labels"], reduction="none")

    assert hf.from_trainer(made, "s", objective=losses).objective is losses


@pytest.mark.parametrize("name", ["get_train_dataloader", "_get_train_sampler", "_prepare_inputs"])
@pytest.mark.parametrize("where", ["class", "base", "instance"])
def test_rows_that_the_trainer_reads_in_its_own_way_are_refused(name: str, where: str, tmp_path: Path):
    def same(self: Any, *arguments: Any) -> Any:
        return getattr(transformers.Trainer, name)(self, *arguments)

    cls = type("Mine", (transformers.Trainer,), {name: same} if where != "instance" else {})
    cls = type("Further", (cls,), {}) if where == "base" else cls
    model, trained = tiny.model("BertForSequenceClassification"), where == "instance"
    made = trainer(tmp_path, model, tokenised(2), cls=cls, trained=trained)
    if where == "instance":
        hf.from_trainer(made, "s")
        setattr(made, name, getattr(made, name))
    for objective in (None, Classification()):
        with pytest.raises(DescriptionError, match=rf"has a {name} of its own.*hf.stage\(name, trainer.model, rows\)"):
            hf.from_trainer(made, "s", objective=objective)


def test_the_trainers_of_transformers_are_read_by_size(tmp_path: Path):
    rows, model = tokenised(2), tiny.model("BertForSequenceClassification")
    arguments = transformers.Seq2SeqTrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to=[])
    made = transformers.Seq2SeqTrainer(
        model=model, args=arguments, train_dataset=rows, processing_class=tiny.tokenizer()
    )
    assert hf.from_trainer(made, "s").objective == Classification()


@pytest.mark.parametrize("reduction", ["Sum", "token", None, 1])
def test_an_unknown_reduction_is_refused(reduction: Any, tmp_path: Path):
    made = of_next_tokens(tmp_path, trained=False)
    with pytest.raises(DescriptionError, match=r"reduction must be 'tokens', 'mean', 'sum' or 'auto', got"):
        hf.from_trainer(made, "s", reduction=reduction)


def test_what_is_no_finished_trainer_is_refused(tmp_path: Path):
    with pytest.raises(DescriptionError, match=r"trainer must be a transformers.Trainer, got Linear"):
        hf.from_trainer(nn.Linear(1, 1), "s")
    made = trainer(tmp_path, tiny.model("BertForSequenceClassification"), tokenised(2))
    made.train_dataset = None
    with pytest.raises(DescriptionError, match="has no train_dataset"):
        hf.from_trainer(made, "s")


def test_collators_that_draw_whole_words_are_refused(tmp_path: Path):
    made = of_masks(tmp_path)
    made.data_collator = type("Mine", (transformers.DataCollatorForLanguageModeling,), {})(tiny.tokenizer())
    with pytest.raises(DescriptionError, match="Mine draws masks of its own kind"):
        hf.from_trainer(made, "s")
    made.data_collator = transformers.DataCollatorForLanguageModeling(tiny.tokenizer())
    made.data_collator.whole_word_mask = True
    with pytest.raises(DescriptionError, match="draws masks of its own kind"):
        hf.from_trainer(made, "s")


LENGTHS = (4, 9, 5, 12, 3, 8)


def of_next_tokens(folder: Path, model: Any = None, **settings: Any) -> Any:
    rows = [{"input_ids": [5 + (i + j) % 12 for j in range(length)]} for i, length in enumerate(LENGTHS)]
    collator = transformers.DataCollatorForLanguageModeling(tiny.tokenizer(marks=False), mlm=False)
    model = tiny.model("LlamaForCausalLM") if model is None else model
    return trainer(folder, model, datasets.Dataset.from_list(rows), collator, **settings)


def whole(made: Any, stage: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """The stage's mean loss, and the Trainer's of a step over all examples."""
    (batch,) = stage.examples.read([range(len(stage.data))])
    with torch.no_grad():
        ours = stage.loss.losses(stage.loss.outputs(stage.evaluated, batch.content), batch.content).mean()
        items = (batch.content["labels"][:, 1:] != -100).sum()
        return ours, made.compute_loss(stage.evaluated, dict(batch.content), num_items_in_batch=items)


class TestHowTokensAreWeighed:
    """The mean of the stage's losses is what the Trainer minimised."""

    @pytest.mark.parametrize("smoothing", [0.0, 0.2])
    def test_every_token_alike_as_in_a_step_of_several_examples(self, smoothing: float, tmp_path: Path):
        made = of_next_tokens(tmp_path, label_smoothing_factor=smoothing)
        stage = hf.from_trainer(made, "s")
        torch.testing.assert_close(*whole(made, stage), rtol=1e-5, atol=1e-6)
        assert any("every token weighs the same" in said and "reduction='mean'" in said for said in notices(stage))
        assert f"tokens={(sum(LENGTHS) - len(LENGTHS)) / len(LENGTHS)!r}" in repr(stage.objective)
        mean, sum_ = (hf.from_trainer(made, "s", reduction=reduction) for reduction in ("mean", "sum"))
        assert abs(float(whole(made, mean)[0]) - float(whole(made, stage)[0])) > 1e-3
        torch.testing.assert_close(whole(made, sum_)[0], whole(made, stage)[0] * cast(Any, stage.objective).tokens)

    def test_every_example_alike_where_a_step_had_one(self, tmp_path: Path):
        made = of_next_tokens(tmp_path / "a", gradient_accumulation_steps=2)
        made.args.per_device_train_batch_size = 1
        assert "PerToken" in repr(hf.from_trainer(made, "s").objective), "tokens are counted over accumulated batches"
        made.args.gradient_accumulation_steps = 1
        stage = hf.from_trainer(made, "s")
        assert repr(stage.objective) == "NextToken(reduction='mean')"
        assert any("one example in a step" in said for said in notices(stage))

    def test_every_example_alike_where_batches_are_of_like_lengths(self, tmp_path: Path):
        made = of_next_tokens(tmp_path)
        made.args.train_sampling_strategy = "group_by_length"
        assert repr(hf.from_trainer(made, "s").objective) == "NextToken(reduction='mean')"

    def test_a_loss_that_ignores_the_step_s_tokens_is_averaged_over_a_batch(self, tmp_path: Path):
        made = of_masks(tmp_path, mlm_probability=0.5)
        made.args.per_device_train_batch_size, made.args.gradient_accumulation_steps = 1, 4
        taken = "PerToken" in repr(hf.from_trainer(made, "s").objective)
        batch = made.data_collator([{"input_ids": [2, 7, 8, 3]}])
        with torch.no_grad():
            batch["labels"] = batch["input_ids"]
            one, two = (float(made.compute_loss(made.model, dict(batch), num_items_in_batch=n)) for n in (4, 8))
        assert taken == (one != two)

    def test_smoothed_classes_are_the_trainer_s(self, tmp_path: Path):
        made = trainer(tmp_path, tiny.model("BertForSequenceClassification"), tokenised(2), label_smoothing_factor=0.3)
        stage = hf.from_trainer(made, "s")
        (batch,) = stage.examples.read([range(len(stage.data))])
        with torch.no_grad():
            ours = stage.loss.losses(stage.loss.outputs(stage.evaluated, batch.content), batch.content).mean()
            torch.testing.assert_close(ours, made.compute_loss(stage.evaluated, dict(batch.content)))
        assert repr(stage.objective).startswith("Smoothed(factor=0.3")


class Weighted(transformers.BertForSequenceClassification):
    """A model whose own loss weighs the classes."""

    def forward(self, input_ids: Any = None, attention_mask: Any = None, labels: Any = None, **named: Any) -> Any:
        out: Any = super().forward(input_ids, attention_mask=attention_mask, **named)
        if labels is not None:
            out.loss = nn.functional.cross_entropy(out.logits, labels, weight=torch.tensor([1.0, 9.0]))
        return out


def balanced() -> Any:
    """Experts whose use is balanced by a term of the loss."""
    settings = transformers.MixtralConfig(
        vocab_size=tiny.SIZE, hidden_size=4, intermediate_size=4, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, num_local_experts=3, output_router_logits=True, router_aux_loss_coef=0.5,
        pad_token_id=0, bos_token_id=2, eos_token_id=3,
    )  # fmt: skip
    return transformers.MixtralForCausalLM(settings)


def with_a_loss_function(model: Any) -> Any:
    model.loss_function = lambda logits, labels, **_: logits.square().mean()
    return model


@pytest.mark.parametrize("make", [balanced, lambda: with_a_loss_function(tiny.model("LlamaForCausalLM"))])
def test_a_model_s_own_loss_of_tokens_is_refused_until_it_is_given(make: Any, tmp_path: Path):
    made = of_next_tokens(tmp_path, make(), trained=False)
    with pytest.raises(DescriptionError, match=r"the Trainer computes another loss than NextToken.*give objective="):
        hf.from_trainer(made, "s")
    with pytest.raises(DescriptionError, match=r"the model computes another loss than NextToken.*give objective="):
        hf.stage("s", made.model, made.train_dataset)


def test_a_model_s_own_loss_of_classes_is_refused_until_it_is_given(tmp_path: Path):
    model = Weighted(tiny.config("bert")).eval()
    made = trainer(tmp_path, model, tokenised(2))
    with pytest.raises(
        DescriptionError, match=r"the Trainer computes another loss than Classification.*give objective="
    ):
        hf.from_trainer(made, "s")


@pytest.mark.parametrize("how", ["bf16", "plain"])
def test_mixed_precision_comes_off(how: str, tmp_path: Path):
    """accelerate leaves a `forward` that rounds to sixteen bits on the model; the user's own keeps it."""
    settings = {"bf16": True} if how == "bf16" else {}
    made = trainer(tmp_path, tiny.model("BertForSequenceClassification"), tokenised(2), **settings)
    assert ("forward" in vars(made.model)) == (how == "bf16")
    stage = hf.from_trainer(made, "s")
    plain = tiny.model("BertForSequenceClassification")
    plain.load_state_dict(made.model.state_dict())
    (batch,) = stage.examples.read([range(4)])
    with torch.no_grad():
        assert torch.equal(stage.loss.outputs(stage.evaluated, batch.content), stage.loss.outputs(plain, batch.content))
    assert ("forward" in vars(made.model)) == (how == "bf16")


@pytest.mark.filterwarnings("ignore::FutureWarning")  # the names of what is called here change in transformers
def test_checkpointed_models_are_traced_as_they_are(tmp_path: Path):
    """Checkpointing left on, and its hook on the embeddings, change no score."""
    made = trainer(tmp_path, tiny.model("BertForSequenceClassification"), tokenised(2))
    made.model.gradient_checkpointing_enable()
    made.model.enable_input_require_grads()
    stage = hf.from_trainer(made, "s")
    made.model.disable_input_require_grads()
    made.model.gradient_checkpointing_disable()
    plain = hf.from_trainer(made, "s")
    query = hf.query(tokenised(2).select(range(2)), stage=stage)
    values = [trace(Chain(one), query, solver=Lanczos(damping=1.0))["s"].values for one in (stage, plain)]
    torch.testing.assert_close(*values)


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda t: setattr(t, "is_deepspeed_enabled", True), r"used DeepSpeed.*trainer.save_model\(folder\)"),
        (lambda t: setattr(t, "is_fsdp_enabled", True), r"used FSDP.*trainer.save_model\(folder\)"),
        (
            lambda t: setattr(t, "data_collator", transformers.DataCollatorWithFlattening()),
            "DataCollatorWithFlattening makes one row of all examples.*reduction='sum'",
        ),
        (lambda t: setattr(t, "compute_loss", t.compute_loss), "has a compute_loss of its own"),
    ],
    ids=["deepspeed", "fsdp", "packed", "patched"],
)
def test_what_cannot_be_traced_says_what_to_type(spoil: Any, says: str, tmp_path: Path):
    made = of_next_tokens(tmp_path, trained=False)
    spoil(made)
    with pytest.raises(DescriptionError, match=f"stage 's': .*{says}"):
        hf.from_trainer(made, "s")


def test_rows_of_images_need_no_tokenizer(tmp_path: Path):
    sizes: dict[str, Any] = {"hidden_size": 4, "intermediate_size": 4, "image_size": 4, "patch_size": 2}
    counts: dict[str, Any] = {"num_hidden_layers": 1, "num_attention_heads": 2, "num_channels": 1, "num_labels": 2}
    settings = transformers.ViTConfig(**sizes, **counts)
    rows = [{"pixel_values": torch.randn(1, 4, 4), "labels": i % 2} for i in range(4)]
    model = transformers.ViTForImageClassification(settings)
    made = trainer(tmp_path, model, rows, transformers.default_data_collator)
    stage = hf.from_trainer(made, "s", objective=Classification())
    assert hf.from_trainer(made, "s").objective == Classification()  # the class's name says so, too
    result = trace(Chain(stage), hf.query(rows[:1], stage=stage), solver=Lanczos(damping=1.0))
    assert bool((result["s"].values != 0).all())

"""Stages from Trainers that really trained."""

from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
import transformers
from torch import nn

from stagetrace import Chain, Frozen, Lanczos, Proximal, hf, trace
from stagetrace.errors import DescriptionError, StagetraceWarning
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
    folder: Path, model: Any, data: Any, collator: Any = None, *, cls: Any = transformers.Trainer, **settings: Any
) -> Any:
    """A Trainer after a few steps."""
    own = {name: settings.pop(name) for name in ("compute_loss_func",) if name in settings}
    arguments = transformers.TrainingArguments(
        output_dir=str(folder), max_steps=3, per_device_train_batch_size=4, learning_rate=0.01, use_cpu=True,
        report_to=[], save_strategy="no", disable_tqdm=True, logging_strategy="no", **settings,
    )  # fmt: skip
    collators = {} if collator is None else {"data_collator": collator}
    processing = {} if collator is not None else {"processing_class": tiny.tokenizer()}
    made = cls(model=model, args=arguments, train_dataset=data, **collators, **processing, **own)
    made.train()
    made.model.eval()  # else the library says that it evaluates a copy in this mode
    return made


def of_masks(folder: Path, **settings: Any) -> Any:
    collator = transformers.DataCollatorForLanguageModeling(tiny.tokenizer(), **settings)
    return trainer(folder, tiny.model("BertForMaskedLM"), tokenised(), collator)


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
    with pytest.warns(StagetraceWarning, match="the Trainer drew masks anew in every epoch"):
        result = trace(Chain(first, second), query, solver=Lanczos(damping=1.0))
    assert all(bool((result[name].values != 0).all()) for name in ("first", "second"))


def test_frozen_parameters_stay_shared_and_kept(tmp_path: Path):
    pretrained = of_masks(tmp_path / "a")
    model = tiny.grown("BertForSequenceClassification", pretrained.model)
    for parameter in model.bert.parameters():
        parameter.requires_grad_(False)
    first = hf.from_trainer(pretrained, "first")
    second = hf.from_trainer(trainer(tmp_path / "b", model, tokenised(2)), "second", after=first)
    assert isinstance(second.link, Frozen)
    assert set(Chain(first, second)["second"].own_values) == {"classifier.weight", "classifier.bias"}


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
    stage = hf.from_trainer(made, "s")
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
    assert any("drew masks anew" in said and repr(masking) in said for said in notices(stage))
    assert notices(own) == []


class Own(transformers.Trainer):
    def compute_loss(self, *arguments: Any, **named: Any) -> Any:
        return super().compute_loss(*arguments, **named)


def halved(outputs: Any, labels: Any, num_items_in_batch: Any = None) -> torch.Tensor:
    return nn.functional.cross_entropy(outputs.logits, labels) / 2


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"cls": Own}, "Own has a compute_loss of its own; give objective="),
        ({"compute_loss_func": halved}, "a compute_loss_func of its own; give objective="),
        ({"label_smoothing_factor": 0.1}, r"smoothed its labels \(label_smoothing_factor=0.1\); give objective="),
    ],
    ids=["compute_loss", "compute_loss_func", "smoothing"],
)
def test_another_loss_is_refused_until_it_is_given(settings: dict[str, Any], says: str, tmp_path: Path):
    made = trainer(tmp_path, tiny.model("BertForSequenceClassification"), tokenised(2), **settings)
    with pytest.raises(DescriptionError, match=says):
        hf.from_trainer(made, "s")

    def losses(model: Any, batch: Any) -> torch.Tensor:
        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        return nn.functional.cross_entropy(logits, batch["labels"], reduction="none")

    assert hf.from_trainer(made, "s", objective=losses).objective is losses


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

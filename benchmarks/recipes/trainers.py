"""Recipes with the Trainer of transformers."""

from collections.abc import Callable, Generator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

import datasets
import torch
import transformers

from benchmarks.recipes import tiny
from benchmarks.recipes.made import Made
from stagetrace import Chain, hf

Recipe = Callable[[Path], Made]


def _trained(
    folder: Path, model: Any, rows: Any, collator: Any, cls: Any = transformers.Trainer, **settings: Any
) -> Any:
    kind = (
        transformers.Seq2SeqTrainingArguments if cls is transformers.Seq2SeqTrainer else transformers.TrainingArguments
    )
    made = cls(model=model, args=tiny.arguments(kind, folder, **settings), train_dataset=rows, data_collator=collator)
    made.train()
    made.model.eval()
    return made


def made(trainer: Any, *, own_rows: bool = True) -> Made:
    """The stage alone. own_rows: whether the trainer collates the same batch each time."""
    stage = hf.from_trainer(trainer, "stage")
    (batch,) = stage.examples.read([range(len(stage.data))])
    content = batch.content
    if own_rows:
        content = trainer.data_collator([kept(trainer, row) for row in trainer.train_dataset])

    def loss() -> Any:
        inputs = dict(content)
        items = tokens_of(inputs, shifted=type(trainer.model).__name__.endswith(("LMHeadModel", "ForCausalLM")))
        return trainer.compute_loss(trainer.model, inputs, num_items_in_batch=items)

    return Made(Chain(stage), loss, trainer.model, in_double=in_double)


@contextmanager
def in_double() -> Generator[None]:
    """Have transformers leave logits in float64, which it computes losses of tokens and texts from in float32."""
    before, logs = torch.Tensor.float, torch.nn.functional.log_softmax
    torch.Tensor.float = lambda self, *settings, **named: self  # pyright: ignore
    torch.nn.functional.log_softmax = lambda logits, dim, dtype=None: logs(logits, dim)  # pyright: ignore
    try:
        yield
    finally:
        torch.Tensor.float, torch.nn.functional.log_softmax = before, logs


def kept(trainer: Any, row: Any) -> dict[str, Any]:
    """A row as the trainer's loader gives it to the collator."""
    trainer._set_signature_columns_if_needed()
    return {name: value for name, value in row.items() if name in trainer._signature_columns and value is not None}


def tokens_of(inputs: dict[str, Any], *, shifted: bool) -> Any:
    """By what the trainer divides the sum of a step: its predicted tokens."""
    labels = inputs.get("labels")
    if labels is None or labels.ndim != 2 or labels.is_floating_point():
        return None
    return ((labels[:, 1:] if shifted else labels) != -100).sum()


def masked(folder: Path) -> Made:
    collator = transformers.DataCollatorForLanguageModeling(tiny.tokenizer(), mlm_probability=0.4)
    return made(_trained(folder, tiny.bert("BertForMaskedLM"), tiny.rows(), collator), own_rows=False)


def causal(folder: Path) -> Made:
    collator = transformers.DataCollatorForLanguageModeling(tiny.tokenizer(), mlm=False)
    return made(_trained(folder, tiny.gpt2(), tiny.rows(), collator))


def blocks(folder: Path) -> Made:
    """All texts run together and cut into blocks, as `run_clm.py` does."""
    tokens = list(chain.from_iterable(tiny.rows()["input_ids"]))
    rows = [{"input_ids": tokens[at : at + 6], "labels": tokens[at : at + 6]} for at in range(0, len(tokens) - 5, 6)]
    return made(_trained(folder, tiny.gpt2(), datasets.Dataset.from_list(rows), transformers.default_data_collator))


def flattened(folder: Path) -> Made:
    return made(_trained(folder, tiny.gpt2(), tiny.rows(), transformers.DataCollatorWithFlattening()))


def classes(folder: Path) -> Made:
    model = tiny.bert("BertForSequenceClassification", num_labels=3)
    return made(_trained(folder, model, tiny.rows("label"), transformers.DataCollatorWithPadding(tiny.tokenizer())))


def smoothed(folder: Path) -> Made:
    model, collator = tiny.bert("BertForSequenceClassification", num_labels=3), transformers.DataCollatorWithPadding
    return made(_trained(folder, model, tiny.rows("label"), collator(tiny.tokenizer()), label_smoothing_factor=0.1))


def numbers(folder: Path) -> Made:
    rows = tiny.rows("value").rename_column("value", "label")
    model = tiny.bert("BertForSequenceClassification", num_labels=1)
    return made(_trained(folder, model, rows, transformers.DataCollatorWithPadding(tiny.tokenizer())))


def several_labels(folder: Path) -> Made:
    rows = tiny.rows("several").rename_column("several", "label")
    model = tiny.bert("BertForSequenceClassification", num_labels=3, problem_type="multi_label_classification")
    return made(_trained(folder, model, rows, transformers.DataCollatorWithPadding(tiny.tokenizer())))


def tags(folder: Path) -> Made:
    rows = tiny.rows("tags").rename_column("tags", "labels")
    model = tiny.bert("BertForTokenClassification", num_labels=3)
    return made(_trained(folder, model, rows, transformers.DataCollatorForTokenClassification(tiny.tokenizer())))


def answers(folder: Path) -> Made:
    rows = tiny.rows("start_positions", "end_positions")
    model = tiny.bert("BertForQuestionAnswering")
    return made(_trained(folder, model, rows, transformers.DataCollatorWithPadding(tiny.tokenizer())))


def translations(folder: Path) -> Made:
    model, cls = tiny.bart(), transformers.Seq2SeqTrainer
    collator = transformers.DataCollatorForSeq2Seq(tiny.tokenizer(), model=model)
    return made(_trained(folder, model, tiny.rows("labels"), collator, cls))


RECIPES: dict[str, Recipe] = {
    "Trainer: masked language model": masked,
    "Trainer: causal language model": causal,
    "Trainer: causal, texts cut into blocks": blocks,
    "Trainer: causal, batches run together": flattened,
    "Trainer: classification": classes,
    "Trainer: classification, smoothed labels": smoothed,
    "Trainer: regression": numbers,
    "Trainer: several labels": several_labels,
    "Trainer: tagging": tags,
    "Trainer: extractive QA": answers,
    "Seq2SeqTrainer": translations,
}

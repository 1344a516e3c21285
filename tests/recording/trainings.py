"""Trainers over tiny models, to record and to run again with examples of another weight."""

import warnings
from pathlib import Path
from typing import Any

import datasets
import torch
import transformers
from torch import Tensor, nn

from tests.hf import tiny

TEXTS = (*tiny.TEXTS, "the big cat", "a red mat sat on the dog", "good dog on the happy mat")
MASKED: dict[str, dict[str, Any]] = {"BertForMaskedLM": {"mlm_probability": 0.3}, "GPT2LMHeadModel": {"mlm": False}}
DROPOUT = {
    "Bert": {"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1},
    "GPT2": {"resid_pdrop": 0.1, "embd_pdrop": 0.1, "attn_pdrop": 0.1},
}


def model(name: str, dtype: torch.dtype = torch.float32, **settings: Any) -> Any:
    torch.manual_seed(0)
    return tiny.model(name, **DROPOUT[name[:4]], **settings).to(dtype)


def data(labels: int | None = None) -> datasets.Dataset:
    tokenizer = tiny.tokenizer()
    rows = tiny.rows(labels, TEXTS)
    return datasets.Dataset.from_list([{**row, **tokenizer(row["text"])} for row in rows])


def trainer(folder: Path, model: Any, rows: Any, *, cls: Any = transformers.Trainer, **settings: Any) -> Any:
    """Warm-up, decay in groups, clipping, and two batches a step with a ragged end, before `train()`."""
    arguments: dict[str, Any] = {
        "output_dir": str(folder), "max_steps": 6, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 2,
        "learning_rate": 0.01, "warmup_steps": 2, "weight_decay": 0.1, "max_grad_norm": 0.5, "use_cpu": True,
        "report_to": [], "save_strategy": "no", "disable_tqdm": True, "logging_strategy": "no",
    }  # fmt: skip
    own = {name: settings.pop(name) for name in ("compute_loss_func", "eval_dataset") if name in settings}
    if settings.pop("checkpointed", False):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # of the name
            model.gradient_checkpointing_enable()
    tokenizer = tiny.tokenizer()
    masks = MASKED.get(type(model).__name__)
    collator = (
        transformers.DataCollatorWithPadding(tokenizer)
        if masks is None
        else transformers.DataCollatorForLanguageModeling(tokenizer, **masks)
    )
    made = transformers.TrainingArguments(**(arguments | settings))
    return cls(model=model, args=made, train_dataset=rows, data_collator=collator, **own)


class Weighted(transformers.Trainer):
    """Gives the loss of each row, which carries its number, a weight; what a batch is divided by stays."""

    weights: Tensor

    def compute_loss(self, model: nn.Module, inputs: Any, return_outputs: bool = False, **rest: Any) -> Tensor:
        del return_outputs, rest
        weights = self.weights[inputs.pop("row")]
        losses = nn.functional.cross_entropy(model(**inputs).logits, inputs["labels"], reduction="none")
        return (losses * weights).sum() / len(losses)

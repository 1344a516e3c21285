"""Trainers of TRL over tiny models, after so many steps, or before the first.

Tests that import this are skipped where trl is not installed.
"""

import copy
from pathlib import Path
from typing import Any

import datasets
import peft
import pytest

from tests.hf import tiny

trl: Any = pytest.importorskip("trl")

TEXTS = (*tiny.TEXTS[:4], "a big red mat on the cat ran", "happy dog", "the red dog ran on", "good dog sat")
COMPLETED = [{"prompt": one, "completion": f" {other}"} for one, other in zip(TEXTS, TEXTS[::-1], strict=True)]
PREFERRED = [
    {"prompt": one, "chosen": f" {other}", "rejected": f" {third}"}
    for one, other, third in zip(TEXTS, TEXTS[::-1], TEXTS[3:] + TEXTS[:3], strict=True)
]
SAID = [
    {
        "messages": [
            {"role": "user", "content": row["prompt"]},
            {"role": "assistant", "content": row["completion"].strip()},
        ]
    }
    for row in COMPLETED
]
TEMPLATE = (
    "{% for m in messages %}{% if m['role'] == 'assistant' %}{% generation %}{{ m['content'] + ' [SEP]' }}"
    "{% endgeneration %}{% else %}{{ m['content'] + ' [MASK] ' }}{% endif %}{% endfor %}"
)


def tokenizer() -> Any:
    made = tiny.tokenizer(marks=False)
    made.eos_token, made.chat_template = "[SEP]", TEMPLATE
    return made


def lora(dropout: float = 0.0) -> Any:
    targets = ["q_proj", "v_proj"]
    return peft.LoraConfig(
        r=2, target_modules=targets, init_lora_weights=False, task_type="CAUSAL_LM", lora_dropout=dropout
    )


def sft(folder: Path, rows: Any = None, model: Any = None, cls: Any = trl.SFTTrainer, **settings: Any) -> Any:
    rows = rows or [{"text": text} for text in TEXTS]
    return _trained(cls, trl.SFTConfig, folder, rows, model or tiny.model("LlamaForCausalLM"), settings)


def dpo(folder: Path, model: Any, rows: Any = None, cls: Any = trl.DPOTrainer, **settings: Any) -> Any:
    return _trained(cls, trl.DPOConfig, folder, rows or PREFERRED, model, settings)


def reward(folder: Path, rows: Any, **settings: Any) -> Any:
    model = tiny.model("LlamaForSequenceClassification", num_labels=1)
    return _trained(trl.RewardTrainer, trl.RewardConfig, folder, rows, model, settings)


def _trained(cls: Any, config: Any, folder: Path, rows: Any, model: Any, settings: dict[str, Any]) -> Any:
    steps = settings.pop("steps", 0)
    own = {name: settings.pop(name) for name in ("ref_model", "peft_config", "data_collator") if name in settings}
    arguments = {
        "output_dir": str(folder), "max_steps": steps or 1, "per_device_train_batch_size": 4, "learning_rate": 0.01,
        "use_cpu": True, "report_to": [], "bf16": False, "save_strategy": "no", "disable_tqdm": True,
        "logging_strategy": "no", "max_length": 16,
    }  # fmt: skip
    made = cls(
        model=model,
        args=config(**(arguments | settings)),
        train_dataset=datasets.Dataset.from_list(rows),
        processing_class=tokenizer(),
        **own,
    )
    if steps:
        made.train()
    return made


def copied(model: Any) -> Any:
    return copy.deepcopy(model)

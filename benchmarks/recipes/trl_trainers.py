"""Recipes with TRL's trainers, alone and after another stage."""

from collections.abc import Generator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import datasets
import peft
import torch.nn.functional as F
from torch import Tensor

from benchmarks.recipes import tiny
from benchmarks.recipes.made import Made, moving
from benchmarks.recipes.trainers import Recipe
from stagetrace import Chain, hf

COMPLETED = [
    {"prompt": one, "completion": f" {other}"} for one, other in zip(tiny.TEXTS, tiny.TEXTS[::-1], strict=True)
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
PREFERRED = [
    {"prompt": one, "chosen": f" {other}", "rejected": f" {third}"}
    for one, other, third in zip(tiny.TEXTS, tiny.TEXTS[::-1], tiny.TEXTS[3:] + tiny.TEXTS[:3], strict=True)
]
trl: Any = import_module("trl")  # its names are found when they are asked for
utils: Any = import_module("trl.trainer.utils")
QUIET: dict[str, Any] = {"bf16": False, "gradient_checkpointing": False}


class _Double:
    """Log-probabilities of tokens in the precision of the hidden states, as TRL's own kernel gives them in float32."""

    @staticmethod
    def apply(
        hidden: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor, temperature: float, *rest: Any
    ) -> tuple[Tensor, ...]:
        del rest
        logits = F.linear(hidden, weight, bias) / temperature
        logs = logits.log_softmax(-1)
        of_labels = logs.gather(-1, labels.unsqueeze(-1)).squeeze(-1)
        entropy = -(logs.exp() * logs).sum(-1)
        return of_labels, entropy, (2 * logs).logsumexp(-1), logits.mean(-1), logits.argmax(-1) == labels


@contextmanager
def in_double() -> Generator[None]:
    """Have TRL compute log-probabilities in float64: differences of its gradients in float32 are mostly rounding."""
    before = utils._ChunkedLogProbFunction
    utils._ChunkedLogProbFunction = _Double
    try:
        yield
    finally:
        utils._ChunkedLogProbFunction = before


def lora() -> Any:
    return peft.LoraConfig(
        r=2, target_modules=["c_attn"], fan_in_fan_out=True, init_lora_weights=False, task_type="CAUSAL_LM"
    )


def sft(folder: Path, rows: Any = None, model: Any = None, adapters: Any = None, **settings: Any) -> Any:
    """A finished SFTTrainer."""
    args = tiny.arguments(trl.SFTConfig, folder, **QUIET, **settings)
    rows = rows or [{"text": text} for text in tiny.TEXTS]
    return _trained(trl.SFTTrainer, model or tiny.gpt2(), args, rows, peft_config=adapters)


def dpo(folder: Path, model: Any, adapters: Any = None, ref_model: Any = None, **settings: Any) -> Any:
    """A finished DPOTrainer."""
    args = tiny.arguments(trl.DPOConfig, folder, **QUIET, **settings)
    return _trained(trl.DPOTrainer, model, args, PREFERRED, peft_config=adapters, ref_model=ref_model)


def _trained(cls: Any, model: Any, args: Any, rows: Any, **own: Any) -> Any:
    data = datasets.Dataset.from_list(rows)
    made = cls(model=model, args=args, train_dataset=data, processing_class=tiny.tokenizer(), **own)
    for name, parameter in made.model.named_parameters():
        if "lora" in name:  # peft makes adapters in float32
            parameter.data = parameter.data.double()
    made.train()
    made.model.eval()
    return made


def after_sft(folder: Path, adapters: Any = None, **settings: Any) -> Made:
    """SFT, then DPO against it."""
    before = sft(folder / "sft", COMPLETED)
    first = hf.from_trainer(before, "sft")
    reference = None if adapters else tiny.apart(before.model)
    after = dpo(folder / "dpo", tiny.apart(before.model), adapters, reference, **settings)
    chain = Chain(first, hf.from_trainer(after, "dpo", after=first, alpha=0.1))
    inside = after.model.get_base_model() if adapters else after.ref_model
    held = {name.replace(".base_layer", ""): p for name, p in inside.named_parameters() if "lora" not in name}
    return Made(chain, loss_of_all(after), after.model, moving(held), in_double)


def loss_of_all(trainer: Any) -> Any:
    """The trainer's loss of all rows at once."""
    content = trainer.data_collator([dict(row) for row in trainer.train_dataset])

    def loss() -> Any:
        if "ref_chosen_logps" in content:  # what was computed beforehand, at the values that the reference has now
            names = ("ref_chosen_logps", "ref_rejected_logps")
            content.update(zip(names, trainer.compute_ref_log_probs(trainer.ref_model, content), strict=True))
        labels = content.get("labels")
        items = None if labels is None else (labels[:, 1:] != -100).sum()
        return trainer.compute_loss(trainer.model, dict(content), num_items_in_batch=items)

    return loss


def alone(trainer: Any) -> Made:
    return Made(Chain(hf.from_trainer(trainer, "stage")), loss_of_all(trainer), trainer.model, in_double=in_double)


def reward(folder: Path) -> Made:
    args = tiny.arguments(trl.RewardConfig, folder, **QUIET, center_rewards_coefficient=0.1)
    rows = [{"chosen": row["chosen"], "rejected": row["rejected"], "margin": 0.2} for row in PREFERRED]
    model = tiny.gpt2("GPT2ForSequenceClassification", num_labels=1)
    return alone(_trained(trl.RewardTrainer, model, args, rows))


def same_adapter(folder: Path) -> Made:
    """SFT with adapters, then DPO that trains the same adapters on: the reference is where they began."""
    before = sft(folder / "sft", COMPLETED, adapters=lora())
    first = hf.from_trainer(before, "sft")
    after = dpo(folder / "dpo", tiny.apart(before.model))
    chain = Chain(first, hf.from_trainer(after, "dpo", after=first, alpha=0.1))
    held = {
        name.replace(".ref.", ".default."): parameter
        for name, parameter in after.model.named_parameters()
        if ".ref." in name or "lora" not in name
    }
    return Made(chain, loss_of_all(after), after.model, moving(held), in_double)


RECIPES: dict[str, Recipe] = {
    "TRL SFT: texts": lambda folder: alone(sft(folder)),
    "TRL SFT: prompts and completions": lambda folder: alone(sft(folder, COMPLETED)),
    "TRL SFT: conversations, assistant only": lambda folder: alone(sft(folder, SAID, assistant_only_loss=True)),
    "TRL SFT: LoRA": lambda folder: alone(sft(folder, COMPLETED, adapters=lora())),
    "TRL SFT: packed rows": lambda folder: alone(sft(folder, packing=True, max_length=16)),
    "TRL SFT: rows cut anywhere": lambda folder: alone(
        sft(folder, packing=True, packing_strategy="wrapped", max_length=8)
    ),
    "TRL SFT: dynamic fine-tuning": lambda folder: alone(sft(folder, loss_type="dft")),
    "TRL SFT, then DPO": after_sft,
    "TRL SFT, then DPO: precomputed reference": lambda folder: after_sft(folder, precompute_ref_log_probs=True),
    "TRL SFT, then DPO: IPO": lambda folder: after_sft(folder, loss_type="ipo"),
    "TRL SFT, then DPO: LoRA": lambda folder: after_sft(folder, lora()),
    "TRL SFT: LoRA, then DPO of the same adapters": same_adapter,
    "TRL DPO: two losses": lambda folder: alone(
        dpo(folder, tiny.gpt2(), ref_model=tiny.gpt2(), loss_type=["sigmoid", "sft"], loss_weights=[1.0, 0.5])
    ),
    "TRL reward model": reward,
}

"""Stages from an `SFTTrainer` that read images: rows are raw there, and its collator makes the features."""

from pathlib import Path
from typing import Any

import datasets
import pytest
import torch

from stagetrace import Chain, GaussNewton, Lanczos, hf, trace
from stagetrace.hf.trl.kinds import Kind
from stagetrace.hf.trl.own import with_fused_head
from tests.hf import trl as of
from tests.hf.modal import seeing

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning:trl", "ignore:'pin_memory' argument"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::stagetrace.errors.StagetraceWarning"),
]
ONE, TWO, THREE = seeing.images()
COMPLETED = [
    {"image": ONE, "prompt": "<image> the cat", "completion": " sat"},
    {"image": TWO, "prompt": "<image> a big red", "completion": " dog ran"},
    {"image": THREE, "prompt": "<image> dog", "completion": " mat"},
]
SAID = [seeing.said(row["image"], row["prompt"][8:], row["completion"].strip()) for row in COMPLETED]


@pytest.mark.parametrize(
    ("rows", "settings", "counts"),
    [
        (COMPLETED, {}, 4),
        (SAID, {}, 34),
        (SAID, {"assistant_only_loss": True}, 4),
        (COMPLETED, {"peft_config": of.lora()}, 4),
    ],
    ids=["completions", "messages", "assistant", "lora"],
)
def test_sft_of_images(rows: Any, settings: dict[str, Any], counts: int, tmp_path: Path):
    processor = seeing.processor(template=seeing.MARKED if "assistant_only_loss" in settings else seeing.TEMPLATE)
    adapters = {name: settings.pop(name) for name in ["peft_config"] if name in settings}
    arguments = of.trl.SFTConfig(
        output_dir=str(tmp_path), max_steps=1, per_device_train_batch_size=3, use_cpu=True, report_to=[], bf16=False,
        save_strategy="no", disable_tqdm=True, logging_strategy="no", **settings,
    )  # fmt: skip
    made = of.trl.SFTTrainer(
        model=seeing.made("llava"), args=arguments, train_dataset=datasets.Dataset.from_list(rows),
        processing_class=processor, **adapters,
    )  # fmt: skip
    made.train()
    stage = hf.from_trainer(made, "s")
    assert sum(label != -100 for row in stage.data for label in row["labels"][1:]) == counts
    with torch.no_grad():
        (batch,) = stage.examples.read([range(3)])
        ours = stage.loss.losses(stage.loss.outputs(stage.evaluated, batch.content), batch.content).mean()
        theirs = made.data_collator([dict(row) for row in made.train_dataset])
        made.model.eval()
        loss = made.compute_loss(
            with_fused_head(stage.evaluated, Kind.SFT, ""), theirs, num_items_in_batch=torch.tensor(counts)
        )
    assert float(ours) == pytest.approx(float(loss), rel=1e-6)
    for query in (hf.query(rows[:1], stage=stage), hf.query(prompt="the cat", completion=" sat", stage=stage)):
        assert next(seeing.WORDS[label] for label in query.data[0]["labels"] if label != -100) == "sat"
    assert len(trace(Chain(stage), query, curvature=GaussNewton(), solver=Lanczos(damping=0.1))["s"].values) == 3

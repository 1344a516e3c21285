"""TRL's trainers, which are Trainers: the same line before `train()`. (Skipped where trl is not installed.)"""

from pathlib import Path
from typing import Any

import datasets
import peft
import pytest
import torch

from stagetrace import Chain, Query, Recording, Stage, Unrolled, trace
from stagetrace.errors import DescriptionError
from stagetrace.objectives import NextToken
from tests.cases import slow_but
from tests.hf import tiny
from tests.recording import trainings as of

trl = pytest.importorskip("trl")
pytestmark = pytest.mark.filterwarnings("ignore")


def tuned(folder: Path, recording: Path | None, *, lora: bool = False, **settings: Any) -> Any:
    tokenizer = tiny.tokenizer(marks=False)
    tokenizer.eos_token = "[SEP]"
    arguments = {
        "output_dir": str(folder), "max_steps": 6, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 2,
        "learning_rate": 0.01, "warmup_steps": 2, "max_grad_norm": 0.5, "use_cpu": True, "report_to": [], "bf16": False,
        "save_strategy": "no", "disable_tqdm": True, "logging_strategy": "no", "max_length": 16,
    }  # fmt: skip
    adapters = peft.LoraConfig(r=2, target_modules=["c_attn"], init_lora_weights=False, task_type="CAUSAL_LM")
    trainer = trl.SFTTrainer(
        model=of.model("GPT2LMHeadModel"),
        args=trl.SFTConfig(**(arguments | settings)),
        train_dataset=datasets.Dataset.from_list(tiny.rows(None, of.TEXTS)),
        processing_class=tokenizer,
        peft_config=adapters if lora else None,
    )
    if recording is not None:
        Recording.of(trainer, recording)
    trainer.train()
    return trainer


WAYS: list[tuple[dict[str, Any], float]] = [({}, 1e-5), ({"lora": True}, 1e-5), ({"bf16": True}, 0.3)]


@pytest.mark.parametrize(("settings", "allowed"), slow_but(WAYS, WAYS[1]))
def test_tuned_as_without_and_replayed(settings: dict[str, Any], allowed: float, tmp_path: Path):
    alone = tuned(tmp_path / "a", None, **settings)
    trained = tuned(tmp_path / "b", tmp_path / "recording", **settings)
    pairs = zip(alone.model.parameters(), trained.model.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    rows, collate = trained.train_dataset, trained.data_collator
    link = Unrolled(recording=tmp_path / "recording")
    stage = Stage("only", model=trained.model.eval(), objective=NextToken("sum"), data=rows, collate=collate, link=link)
    found = trace(Chain(stage), Query([rows[0]], collate=collate))
    assert found.solutions["only"].relative_residuals[0] < allowed
    assert bool((found["only"].values != 0).all())


def test_rows_that_are_run_together_are_refused(tmp_path: Path):
    with pytest.raises(DescriptionError, match="no example has a loss of its own; set padding_free=False"):
        tuned(tmp_path / "a", tmp_path / "recording", packing=True)

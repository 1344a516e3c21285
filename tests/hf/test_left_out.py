"""What a Trainer's settings did beside the loss is said by its stage; and which trainers and ids are taken."""

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import nn

from stagetrace import Stage, hf
from stagetrace.errors import StagetraceError
from stagetrace.objectives import Classification
from stagetrace.stages.coverage import notices, remarks
from tests.hf import tiny
from tests.hf import trl as of
from tests.hf.test_trainer import tokenised, trainer

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning:trl", "ignore:'pin_memory'")


def said(stage: Stage) -> str:
    return "\n".join([*notices(stage), "REMARKS", *remarks(stage)])


def classifier(folder: Path, rows: Any = None, **settings: Any) -> Any:
    return trainer(folder, tiny.model("BertForSequenceClassification"), rows or tokenised(2), **settings)


def test_what_changed_the_steps_and_is_in_no_score_is_said(tmp_path: Path):
    plain = said(hf.from_trainer(classifier(tmp_path), "s"))
    assert plain == "REMARKS"
    noisy = classifier(tmp_path, neftune_noise_alpha=5.0, weight_decay=0.25)
    for module in noisy.model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.1
    noisy.args.max_steps = noisy.state.global_step = 1
    before, after = said(hf.from_trainer(noisy, "s")).split("REMARKS")
    assert "stage 's': trained with noise on the embeddings (neftune_noise_alpha=5.0)" in before
    assert "stage 's': 1 step of 4 examples saw at most 4 of the 8" in before
    assert "trained with dropout (0.1)" in after
    assert "weight_decay=0.25 shrank weights beside the gradient" in after
    assert "shrank" not in said(hf.from_trainer(noisy, "s", weight_decay=0.25))


def test_the_same_of_trl_s_trainers(tmp_path: Path):
    made = of.sft(tmp_path, of.COMPLETED, neftune_noise_alpha=5.0, steps=2, peft_config=of.lora(dropout=0.3))
    made.model.eval()
    before, after = said(hf.from_trainer(made, "s")).split("REMARKS")
    assert "neftune_noise_alpha=5.0" in before
    assert "trained with dropout (0.3)" in after


def test_dropout_of_no_unit_is_no_notice():
    rows = [(torch.ones(2), 0), (torch.zeros(2), 1)]
    for p in (0.0, 0.5):
        model = nn.Sequential(nn.Dropout(p), nn.Linear(2, 2)).train()
        stage = Stage("s", model=model, objective=Classification(), data=rows)
        assert bool(notices(stage)) == (p > 0)


def test_ids_of_a_trainer_s_rows(tmp_path: Path):
    rows = tokenised(2).map(lambda _, place: {"doc": f"d{place}", "id": place % 3}, with_indices=True)
    stage = hf.from_trainer(classifier(tmp_path, rows), "s", ids="doc")
    assert list(stage.example_ids or ()) == [f"d{place}" for place in range(8)]
    unnamed = hf.from_trainer(classifier(tmp_path, rows), "s")
    assert unnamed.example_ids is None
    assert "the same id '0'" in said(unnamed)
    assert "the column 'id' is not taken for ids" in said(unnamed)
    tuned = of.sft(tmp_path, [{"id": f"t{place}", "text": text} for place, text in enumerate(of.TEXTS)])
    assert list(hf.from_trainer(tuned, "s").example_ids or ()) == list(tuned.train_dataset["id"])
    with pytest.raises(StagetraceError, match=r"ids='doc'.*there is no such column"):
        hf.from_trainer(tuned, "s", ids="doc")


def test_trainers_of_other_packages_are_told_what_to_type():
    for module, base, says in (
        ("lightning.pytorch.trainer", object, r"a Trainer of Lightning.*type Stage\(name, model=module"),
        ("sentence_transformers.base", transformers.Trainer, "of sentence-transformers.*Grouped.padded"),
    ):
        kind = type("Trainer", (base,), {"__module__": module})
        with pytest.raises(StagetraceError, match=says):
            hf.from_trainer(object.__new__(kind), "s")

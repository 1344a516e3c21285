"""Stages from TRL's trainers: rows, losses and references are those that were trained on."""

from pathlib import Path
from typing import Any

import pytest
import torch

from stagetrace import Chain, Frozen, Proximal, hf
from stagetrace.errors import DescriptionError
from stagetrace.hf.trl.kinds import Kind
from stagetrace.hf.trl.own import with_fused_head
from stagetrace.objectives import DPO, NextToken, Reward
from stagetrace.stages.coverage import notices_at
from tests.hf import trl as of

pytestmark = pytest.mark.filterwarnings(
    "ignore::FutureWarning", "ignore::UserWarning:trl", "ignore:'pin_memory' argument", "ignore::DeprecationWarning"
)


def whole(made: Any, stage: Any, kind: Kind) -> tuple[float, float]:
    """The stage's mean loss, and the trainer's of one step over all rows."""
    with torch.no_grad():
        (batch,) = stage.examples.read([range(len(stage.data))])
        ours = stage.loss.losses(stage.loss.outputs(stage.evaluated, batch.content), batch.content).mean()
        rows = [{name: row[name] for name in row if row[name] is not None} for row in made.train_dataset]
        theirs = made.data_collator(rows)
        items = (theirs["labels"][:, 1:] != -100).sum() if "labels" in theirs else None
        made.model.eval()
        return float(ours), float(
            made.compute_loss(with_fused_head(stage.evaluated, kind, ""), theirs, num_items_in_batch=items)
        )


@pytest.mark.parametrize(
    ("rows", "settings"),
    [
        (None, {}),
        (of.COMPLETED, {}),
        (of.COMPLETED, {"completion_only_loss": False, "max_length": 9}),
        (of.COMPLETED, {"peft_config": of.lora()}),
        (of.SAID, {}),
        (of.SAID, {"assistant_only_loss": True}),
        (None, {"packing": True}),
        (None, {"packing": True, "packing_strategy": "wrapped", "max_length": 8}),
        (of.COMPLETED, {"padding_free": True, "max_length": None}),
        (None, {"label_smoothing_factor": 0.2}),
    ],
    ids=[
        "texts",
        "completions",
        "cut",
        "lora",
        "messages",
        "assistant",
        "packed",
        "wrapped",
        "padding-free",
        "smoothed",
    ],
)
def test_sft(rows: Any, settings: dict[str, Any], tmp_path: Path):
    made = of.sft(tmp_path, rows, **settings)
    made.model.train()
    stage = hf.from_trainer(made, "s")
    assert all(module.training for module in made.model.modules())
    assert not made._metrics["eval"]
    ours, theirs = whole(made, stage, Kind.SFT)
    assert ours == pytest.approx(theirs, rel=1e-6)
    assert hf.from_trainer(made, "s", reduction="sum").objective != stage.objective


def test_dpo_refers_to_the_stage_before(tmp_path: Path):
    tuned = of.sft(tmp_path / "sft", of.COMPLETED, steps=2)
    first = hf.from_trainer(tuned, "sft")
    before = {name: value.clone() for name, value in tuned.model.state_dict().items()}
    made = of.dpo(tmp_path / "dpo", of.copied(tuned.model), ref_model=of.copied(tuned.model), beta=0.3, steps=2)
    stage = hf.from_trainer(made, "dpo", after=first, alpha=0.5)
    assert repr(stage.objective) == "DPO(beta=0.3, reference=\"stage 'sft'\", loss_type='sigmoid', label_smoothing=0.0)"
    ours, theirs = whole(made, stage, Kind.DPO)
    assert ours == pytest.approx(theirs, rel=1e-6)
    assert isinstance(stage.link, Proximal)
    bound = Chain(first, stage)["dpo"]
    assert bound.inherited.size == bound.trained.size, "all of the reference, and nothing else"
    assert not [text for text in notices_at(bound) if "held fixed" in text]
    assert all(torch.equal(value, before[name]) for name, value in first.model.state_dict().items())
    other = of.dpo(
        tmp_path / "other", of.copied(tuned.model), ref_model=of.tiny.model("LlamaForCausalLM", seed=5), steps=1
    )
    stage = hf.from_trainer(other, "dpo", after=first)
    assert any(
        "held fixed" in text and "not the model of 'sft'" in text for text in notices_at(Chain(first, stage)["dpo"])
    )


@pytest.mark.parametrize(
    "settings",
    [
        {"precompute_ref_log_probs": True},
        {"loss_type": "ipo", "max_length": 8},
        {"loss_type": "robust", "label_smoothing": 0.1},
        {"label_smoothing": 0.1, "max_length": 6, "truncation_mode": "keep_end"},
    ],
)
def test_settings_of_dpo(settings: dict[str, Any], tmp_path: Path):
    model = of.tiny.model("LlamaForCausalLM")
    made = of.dpo(tmp_path, model, ref_model=of.copied(model), **settings)
    stage = hf.from_trainer(made, "dpo")
    assert isinstance(stage.objective, DPO)
    assert (stage.objective.reference is None) == ("precompute_ref_log_probs" in settings)
    ours, theirs = whole(made, stage, Kind.DPO)
    assert ours == pytest.approx(theirs, rel=1e-6)


@pytest.mark.slow
def test_dpo_with_adapters(tmp_path: Path):
    """New ones refer to the base, which is the stage before; those of SFT trained on refer to their start."""
    tuned = of.sft(tmp_path / "sft", of.COMPLETED, steps=2)
    first = hf.from_trainer(tuned, "sft")
    made = of.dpo(tmp_path / "dpo", of.copied(tuned.model), peft_config=of.lora(), steps=2)
    learns = {name for name, p in made.model.named_parameters() if p.requires_grad}
    bound = Chain(first, hf.from_trainer(made, "dpo", after=first))["dpo"]
    assert isinstance(bound.stage.link, Frozen)
    assert bound.inherited.size == 2 * sum(p.numel() for p in tuned.model.parameters()), "the base, and the reference"
    alone = hf.from_trainer(made, "dpo")
    for stage in (bound.stage, alone):
        ours, theirs = whole(made, stage, Kind.DPO)
        assert ours == pytest.approx(theirs, rel=1e-6)
    assert learns == {name for name, p in made.model.named_parameters() if p.requires_grad}
    adapted = of.sft(tmp_path / "lora", of.COMPLETED, of.copied(tuned.model), peft_config=of.lora())
    second = hf.from_trainer(adapted, "lora", after=first)
    further = of.dpo(tmp_path / "further", of.copied(adapted.model), steps=2)
    stage = hf.from_trainer(further, "dpo", after=second)
    assert "stage 'lora'" in repr(stage.objective)
    assert Chain(first, second, stage)["dpo"].anchored_to


@pytest.mark.parametrize("more", [{}, {"margin": 0.3}])
def test_reward(more: dict[str, float], tmp_path: Path):
    rows = [{"chosen": row["chosen"], "rejected": row["rejected"], **more} for row in of.PREFERRED]
    made = of.reward(tmp_path, rows, center_rewards_coefficient=0.2 if more else None)
    stage = hf.from_trainer(made, "r")
    assert stage.objective == Reward(0.2 if more else 0.0)
    ours, theirs = whole(made, stage, Kind.REWARD)
    assert ours == pytest.approx(theirs, rel=1e-6)
    with pytest.raises(DescriptionError, match="the columns 'chosen_ids'"):
        hf.query([{"text": "the cat"}], stage=stage)


def test_a_query_of_a_stage_of_pairs_is_of_texts_or_of_pairs(tmp_path: Path):
    model = of.tiny.model("LlamaForCausalLM")
    made = of.dpo(tmp_path, model, ref_model=of.copied(model))
    stage = hf.from_trainer(made, "dpo")
    asked = hf.query([{"prompt": "the cat", "completion": " sat"}], stage=stage)
    assert asked.objective == NextToken()
    assert [label for label in asked.data[0]["labels"] if label != -100] == asked.data[0]["input_ids"][2:]
    assert hf.query(made.train_dataset.select([1]), stage=stage).objective is None


class Own(of.trl.SFTTrainer):
    def compute_loss(self, *arguments: Any, **named: Any) -> Any:
        return super().compute_loss(*arguments, **named)


class Logs(of.trl.SFTTrainer):
    def log(self, *arguments: Any, **named: Any) -> None:
        super().log(*arguments, **named)


def test_what_no_stage_describes_is_refused(tmp_path: Path):
    made = of.sft(tmp_path)
    assert hf.from_trainer(of.sft(tmp_path, cls=Logs), "s").objective == hf.from_trainer(made, "s").objective
    for settings, says in (
        ({"cls": Own}, "Own has a compute_loss of its own.*type Stage"),
        ({"loss_type": "dft"}, "loss_type='dft' weighs tokens by their probability"),
    ):
        with pytest.raises(DescriptionError, match=says):
            hf.from_trainer(of.sft(tmp_path, **settings), "s")
    model = of.tiny.model("LlamaForCausalLM")
    for settings, says in (
        ({"loss_type": ["sigmoid", "sft"]}, r"loss_type=\['sigmoid', 'sft'\] is none of 'sigmoid'"),
        ({"sync_ref_model": True}, "sync_ref_model=True moved the reference"),
        ({"f_divergence_type": "js_divergence"}, "f_divergence_type='js_divergence' changes the loss"),
        ({"use_weighting": True}, "use_weighting=True changes the loss"),
    ):
        with pytest.raises(DescriptionError, match=says):
            hf.from_trainer(of.dpo(tmp_path, of.copied(model), ref_model=of.copied(model), **settings), "s")
    with pytest.raises(DescriptionError, match="reduction= is of losses of tokens"):
        hf.from_trainer(of.dpo(tmp_path, of.copied(model), ref_model=of.copied(model)), "s", reduction="mean")
    made.compute_loss_func = lambda outputs, labels, num_items_in_batch=None: outputs.logits.mean()
    with pytest.raises(DescriptionError, match="a compute_loss_func of its own"):
        hf.from_trainer(made, "s")


def test_another_loss_than_the_trainer_s_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    model = of.tiny.model("LlamaForCausalLM")
    made = of.dpo(tmp_path, model, ref_model=of.copied(model), steps=2)
    made.args.beta = 0.2  # after training, so that the trainer's own is still 0.1
    with pytest.raises(DescriptionError, match=r"the DPOTrainer computes another loss than DPO\(beta=0.2"):
        hf.from_trainer(made, "s")
    tuned = of.sft(tmp_path)
    tuned.label_smoother = None
    tuned.train_dataset = tuned.train_dataset.map(lambda row: {"labels": [-100, *row["labels"][1:]]})
    assert hf.from_trainer(tuned, "s"), "the first label is never predicted"


def test_rows_of_accumulated_batches_are_one_step_over_all_their_tokens(tmp_path: Path):
    one_row = {"per_device_train_batch_size": 1}
    several = hf.from_trainer(of.sft(tmp_path / "a", gradient_accumulation_steps=2, **one_row), "s")
    single = hf.from_trainer(of.sft(tmp_path / "b", **one_row), "s")
    assert any("the trainer's steps of 2 rows" in notice for notice in several.data.notices)
    assert any("trained with one row in a step" in notice for notice in single.data.notices)
    assert several.objective != single.objective

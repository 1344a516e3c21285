"""What a Trainer leaves of its training: checkpoints, rates, and how a stage before a recorded one is solved."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from stagetrace import Chain, GaussNewton, Recording, Unrolled, hf, trace
from stagetrace.errors import DescriptionError, StagetraceWarning
from stagetrace.replay import stopped_early
from tests.hf import tiny
from tests.recording import trainings as of

pytestmark = pytest.mark.filterwarnings(
    "ignore::stagetrace.errors.StagetraceWarning",
    "ignore:'pin_memory' argument is set as true",
    "ignore:`:FutureWarning:transformers",
)
SAVED = {"save_strategy": "steps", "save_steps": 2, "logging_strategy": "steps", "logging_steps": 1}
RATES = [0.01 * share for share in (0, 1 / 2, 1, 3 / 4, 1 / 2, 1 / 4)]
"""Two steps of warm-up, then linearly down to zero after six."""


def trained(folder: Path, **settings: Any) -> Any:
    made = of.trainer(folder, of.model("BertForMaskedLM"), of.data(), **settings)
    made.train()
    made.model.eval()
    return made


def test_each_checkpoint_has_its_rates_and_metric(tmp_path: Path):
    made = trained(tmp_path, **SAVED)
    bound = Chain(hf.from_trainer(made, "one"))["one"]
    kept = hf.checkpoints(made)
    assert [list(each.rates or ()) for each in kept] == [pytest.approx(RATES[i : i + 2]) for i in (0, 2, 4)]
    early = stopped_early(bound, kept)
    assert [each.time for each in (*early.earlier, early)] == pytest.approx([0.005, 0.0175, 0.0075])
    optimizer = made.optimizer.optimizer
    named = dict(made.model.named_parameters())
    moments = [optimizer.state[named[name]]["exp_avg_sq"].reshape(-1) for name in bound.trained.names]
    D = (torch.cat(moments).double() / (1 - 0.999**6)).sqrt() + 1e-8
    assert early.metric is not None
    moved = early.metric.isfinite()
    torch.testing.assert_close(early.metric[moved], D[moved], rtol=1e-6, atol=0)
    # the weights decay, the biases do not
    assert isinstance(early.decay, torch.Tensor)
    assert set(early.decay.tolist()) == {0.0, 0.1}
    by_folder = stopped_early(bound, hf.checkpoints(tmp_path, made.model))
    alone = stopped_early(bound, hf.checkpoints(tmp_path / "checkpoint-6", made.model))
    assert alone.time == pytest.approx(sum(RATES), rel=1e-6)
    for mine, theirs in zip((*early.earlier, early), (*by_folder.earlier, by_folder), strict=True):
        assert mine.time == pytest.approx(theirs.time, rel=1e-6)
        assert torch.equal(mine.metric, theirs.metric)  # pyright: ignore
        assert torch.equal(mine.decay, theirs.decay)  # pyright: ignore
    for mine, theirs in zip(early.earlier, by_folder.earlier, strict=True):
        assert torch.equal(mine.values, theirs.values)
    assert torch.equal(alone.metric, early.metric)  # pyright: ignore


def test_checkpoints_of_an_older_run_in_the_same_folder_are_refused(tmp_path: Path):
    made = trained(tmp_path, **SAVED)
    assert len(hf.checkpoints(made)) == len(hf.checkpoints(tmp_path, made.model)) == 3
    told = tmp_path / "checkpoint-2" / "trainer_state.json"
    record = json.loads(told.read_text())
    record["log_history"][0]["loss"] += 1.0
    told.write_text(json.dumps(record))
    sources: list[tuple[Any, Any]] = [(made, None), (tmp_path, made.model)]
    for source, model in sources:
        with pytest.raises(DescriptionError, match=r"checkpoint-2 was not written by the training.*older run"):
            hf.checkpoints(source, model)


@pytest.mark.slow
def test_a_pretraining_by_a_trainer_before_a_recorded_fine_tuning(tmp_path: Path):
    """The default of the pretraining is chosen by what the Trainer left, and said."""
    first = trained(tmp_path / "first", **SAVED)
    model = tiny.grown("BertForSequenceClassification", first.model)
    second = of.trainer(tmp_path / "second", model, of.data(2))
    Recording.of(second, tmp_path / "recording")
    second.train()
    second.model.eval()
    pretrain = hf.from_trainer(first, "pretrain")
    link = Unrolled(hf.shared(model, first.model), tmp_path / "recording")
    finetune = hf.from_trainer(second, "finetune", after=pretrain, link=link)
    assert finetune.training is None  # it was recorded
    chain = Chain(pretrain, finetune)
    query = hf.query(second.train_dataset.select([0, 1]), stage=finetune)
    with pytest.warns(StagetraceWarning, match=r"'pretrain': EarlyStopping\(time=0\.03.*was chosen"):
        chosen = trace(chain, query, curvature={"pretrain": GaussNewton()})
    assert "phi_t" in str(chosen.solutions["pretrain"].system)
    kept = stopped_early(chain["pretrain"], hf.checkpoints(first))
    segments = trace(chain, query, curvature={"pretrain": GaussNewton()}, solver={"pretrain": kept})
    assert "in 3 segments" in str(segments.solutions["pretrain"].system)
    values = torch.stack([chosen["pretrain"].values, segments["pretrain"].values])
    assert torch.corrcoef(values)[0, 1] > 0.5


def test_what_is_not_known_is_not_taken(tmp_path: Path):
    made = trained(tmp_path / "rough", optim="adafactor")
    assert hf.from_trainer(made, "one").training is None
    with pytest.raises(DescriptionError, match="no optimiser's state that is known"):
        hf.checkpoints(made)
    with pytest.raises(DescriptionError, match=r"has no checkpoint with the optimiser's state"):
        hf.checkpoints(tmp_path, made.model)
    with pytest.raises(DescriptionError, match=r"of which model\?"):
        hf.checkpoints(tmp_path)
    quiet = trained(tmp_path / "quiet", **(SAVED | {"logging_steps": 5}))
    with pytest.raises(DescriptionError, match="has no rates of its first steps"):
        hf.checkpoints(tmp_path / "quiet", quiet.model)

"""Trainers recorded by one line: trained as without it, replayed as trained, and differentiated."""

from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers

from stagetrace import Chain, Recording, Trace, Unrolled, hf, trace
from stagetrace.errors import DataError, DescriptionError
from stagetrace.objectives import Classification, MaskedToken
from stagetrace.recording import Recorded
from tests.recording import trainings as of

pytestmark = pytest.mark.filterwarnings(
    "ignore::stagetrace.errors.StagetraceWarning",
    "ignore:'pin_memory' argument is set as true",
    "ignore:`:FutureWarning:transformers",
    "ignore:`is_gradient_checkpointing`:FutureWarning",
    "ignore:CPU Autocast only supports",
)
CLASSIFIER = "BertForSequenceClassification"


def equal(one: Any, other: Any) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def agreement(trained: Any, folder: Any, **settings: Any) -> tuple[float, Trace]:
    """The largest difference between replay and recording, and the trace of one example through it."""
    trained.model.eval()
    stage = hf.from_trainer(trained, "only", link=Unrolled(recording=folder), **settings)
    found = trace(Chain(stage), hf.query(trained.train_dataset.select([0]), stage=stage))
    return found.solutions["only"].relative_residuals[0], found


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        pytest.param("BertForMaskedLM", {}, marks=pytest.mark.slow),
        ("BertForMaskedLM", {"train_sampling_strategy": "group_by_length", "dataloader_num_workers": 1}),
        pytest.param("GPT2LMHeadModel", {"max_grad_norm": 0.0}, marks=pytest.mark.slow),
        ("GPT2LMHeadModel", {"bf16": True}),
        pytest.param(CLASSIFIER, {"checkpointed": True}, marks=pytest.mark.slow),
    ],
)
def test_a_trainer_trains_as_without_and_is_replayed(name: str, settings: dict[str, Any], tmp_path: Path):
    rows = of.data(2 if name == CLASSIFIER else None)
    alone = of.trainer(tmp_path / "a", of.model(name), rows, **settings)
    alone.train()
    trained = of.trainer(tmp_path / "b", of.model(name), rows, **settings)
    Recording.of(trained, tmp_path / "recording")
    trained.train()
    assert equal(alone.model, trained.model)
    assert vars(alone).keys() == vars(trained).keys()  # nothing of the recording is left on the Trainer
    recorded = Recorded.load(tmp_path / "recording")
    steps = [step for block in recorded.blocks for step in recorded.read(block)]
    assert [len(step.micros) for step in steps] == [2, 1, 2, 1, 2, 1]
    assert sorted(i for step in steps[:2] for micro in step.micros for i in micro.ids) == list(range(len(rows)))
    assert {micro.autocast for step in steps for micro in step.micros} == {
        ("cpu", "bfloat16") if "bf16" in settings else None
    }
    assert recorded.states == (0, 3, 6)  # the root of six steps, rounded up
    off, found = agreement(trained, recorded)
    assert off < 1e-5
    assert bool((found["only"].values != 0).all())


def test_the_derivative_is_that_of_the_trainer_run_again(tmp_path: Path):
    def run(weights: list[float], folder: Path | None = None) -> Any:
        rows = of.data(2).remove_columns("text").rename_column("label", "labels")
        settings: dict[str, Any] = {"cls": of.Weighted, "remove_unused_columns": False}
        if folder is None:
            rows = rows.add_column("row", list(range(len(rows))))
        trainer = of.trainer(
            tmp_path / "out", of.model(CLASSIFIER, torch.float64), rows, **({} if folder else settings)
        )
        trainer.weights = torch.tensor(weights, dtype=torch.float64)
        if folder is not None:
            Recording.of(trainer, folder, every=2)
        trainer.train()
        return trainer

    def loss(model: Any) -> float:
        model.eval()
        return float(Classification().losses(model(**asked).logits, {"labels": asked["labels"]}).detach().mean())

    ones = [1.0] * len(of.TEXTS)
    trained = run(ones, tmp_path / "recording")
    asked = trained.data_collator([trained.train_dataset[0]])
    assert equal(run(ones).model, trained.model)
    recorded = Recorded.load(tmp_path / "recording")
    off, found = agreement(trained, recorded)
    assert off < 1e-12
    clips = [clip for block in recorded.blocks for step in recorded.read(block) for clip in step.clips]
    assert sum(clip.norm > clip.limit for clip in clips) >= 4  # clipping is at work
    for index in (2, 8):
        difference = []
        for by in (1e-4, -1e-4):
            weights = [1.0 + by * (i == index) for i in range(len(ones))]
            difference.append(loss(run(weights).model))
        slope = (difference[0] - difference[1]) / 2e-4 * len(ones)
        assert float(found["only"].values[index]) == pytest.approx(slope, rel=1e-6)


@pytest.mark.slow
def test_adapters_on_a_frozen_base_that_was_trained_before(tmp_path: Path):
    first = of.trainer(tmp_path / "first", of.model("BertForMaskedLM"), of.data())
    Recording.of(first, tmp_path / "pretrain")
    first.train()
    base = of.model(CLASSIFIER)
    base.bert.load_state_dict(first.model.bert.state_dict(), strict=False)  # a pooler is new
    lora = peft.LoraConfig(r=2, target_modules=["query", "value"], init_lora_weights=False, task_type="SEQ_CLS")
    second = of.trainer(tmp_path / "second", peft.get_peft_model(base, lora), of.data(2))
    Recording.of(second, tmp_path / "finetune")
    second.train()
    first.model.eval()
    second.model.eval()
    pretrain = hf.from_trainer(first, "pretrain", link=Unrolled(recording=tmp_path / "pretrain"))
    link = Unrolled(hf.shared(second.model, pretrain), tmp_path / "finetune")
    finetune = hf.from_trainer(second, "finetune", after=pretrain, link=link)
    chain = Chain(pretrain, finetune)
    assert not chain["finetune"].anchored_to  # all that is shared was kept
    found = trace(chain, hf.query(of.data(2).select([0]), stage=finetune))
    for name in ("pretrain", "finetune"):
        assert found.solutions[name].relative_residuals[0] < 1e-5
        assert bool((found[name].values != 0).all())


def test_the_best_checkpoint_is_a_state_that_was_kept(tmp_path: Path):
    saved = {"save_strategy": "steps", "save_steps": 2, "eval_strategy": "steps", "eval_steps": 2}
    settings = {"load_best_model_at_end": True, "eval_dataset": of.data(2)} | saved
    trained = of.trainer(tmp_path / "out", of.model(CLASSIFIER), of.data(2), **settings)
    Recording.of(trained, tmp_path / "recording", every=5)
    trained.train()
    recorded = Recorded.load(tmp_path / "recording")
    assert recorded.states == (0, 2, 4, 5, 6)  # 2, 4 and 6 were saved
    best = int(trained.state.best_model_checkpoint.rpartition("-")[2])
    assert best < 6  # else this test shows nothing
    off, found = agreement(trained, recorded)
    assert off < 1e-5
    assert found.solutions["only"].steps == best


@pytest.fixture(scope="module")
def sessions(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """A training of four steps, and one that went on from its second."""
    folder = tmp_path_factory.mktemp("sessions")
    for name, steps, start in (("first", 4, None), ("second", 5, str(folder / "out" / "checkpoint-2"))):
        settings = {"save_strategy": "steps", "save_steps": 2, "max_steps": steps}
        trainer = of.trainer(folder / "out", of.model(CLASSIFIER), of.data(2), **settings)
        Recording.of(trainer, folder / name)
        trainer.train(resume_from_checkpoint=start)
    return folder, trainer


def test_a_resumed_training_is_one_recording(sessions: tuple[Path, Any]):
    folder, trained = sessions
    off, found = agreement(trained, [folder / "first", folder / "second"])
    assert off < 1e-5
    assert found.solutions["only"].steps == 5  # two of the first session, three of the second
    alone = agreement(trained, folder / "second")[1]
    assert not torch.allclose(alone["only"].values, found["only"].values)


def test_sessions_in_another_order_are_refused(sessions: tuple[Path, Any]):
    folder, _ = sessions
    with pytest.raises(DescriptionError, match="its first state is none of those that were kept"):
        Unrolled(recording=[folder / "second", folder / "first"])


def test_a_new_optimizer_is_no_resumed_one(sessions: tuple[Path, Any], tmp_path: Path):
    folder, _ = sessions
    model = of.model(CLASSIFIER)
    kept = Recorded.load(folder / "first").state(2).values
    model.load_state_dict({**model.state_dict(), **kept})
    anew = of.trainer(tmp_path / "out", model, of.data(2), max_steps=2)
    Recording.of(anew, tmp_path / "anew")
    anew.train()
    with pytest.raises(DescriptionError, match="those of step 2, but the optimiser's state is not"):
        Unrolled(recording=[folder / "first", tmp_path / "anew"])


def test_means_over_tokens_are_refused_with_what_to_write(tmp_path: Path):
    trained = of.trainer(tmp_path / "out", of.model("BertForMaskedLM"), of.data())
    Recording.of(trained, tmp_path / "recording")
    trained.train()
    with pytest.raises(DataError, match=r"norm of the gradient before.*give the stage MaskedToken\(reduction='sum'\)"):
        agreement(trained, tmp_path / "recording", objective=MaskedToken("mean"))


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"neftune_noise_alpha": 5.0}, "NEFTune.*neftune_noise_alpha=None"),
        ({"torch_compile": True}, "compiled and has dropout.*fallback_random = True"),
    ],
)
def test_what_cannot_be_replayed_is_refused(settings: dict[str, Any], reason: str, tmp_path: Path):
    trainer = of.trainer(tmp_path / "out", of.model(CLASSIFIER), of.data(2), **settings)
    with pytest.raises(DescriptionError, match=reason):
        Recording.of(trainer, tmp_path / "recording")


def test_a_stream_is_refused(tmp_path: Path):
    trainer = of.trainer(tmp_path / "out", of.model(CLASSIFIER), of.data(2).to_iterable_dataset())
    with pytest.raises(DescriptionError, match=r"a stream, whose examples have no numbers.*Dataset.from_list"):
        Recording.of(trainer, tmp_path / "recording")


def test_anything_else_is_refused(tmp_path: Path):
    with pytest.raises(DescriptionError, match=r"got a str; give a transformers\.Trainer"):
        Recording.of("trainer", tmp_path / "recording")


def test_a_training_that_fails_leaves_the_trainer_as_it_was(tmp_path: Path):
    class Failing(transformers.Trainer):
        def compute_loss(self, *arguments: Any, **named: Any) -> Any:
            if self.state.global_step == 2:
                raise RuntimeError("on purpose")
            return super().compute_loss(*arguments, **named)

    trainer = of.trainer(tmp_path / "out", of.model(CLASSIFIER), of.data(2), cls=Failing)
    before = torch.nn.utils.clip_grad_norm_
    Recording.of(trainer, tmp_path / "recording", every=1)
    with pytest.raises(RuntimeError, match="on purpose"):
        trainer.train()
    assert not {"train", "training_step", "get_train_dataloader"} & set(vars(trainer))
    assert torch.nn.utils.clip_grad_norm_ is before
    assert Recorded.load(tmp_path / "recording").steps == 2  # what ran is there

"""The experiments `bert` and `gpt` from end to end, on a few dozen short texts and very small models."""

import json
import shutil
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("datasets")
pytest.importorskip("transformers")
pytest.importorskip("accelerate")
pytest.importorskip("peft")
pytest.importorskip("bm25s")
from datasets import Dataset

from experiments.__main__ import main
from experiments.bert_and_gpt import bert, gpt, protocol, stages
from experiments.bert_and_gpt.data import balanced, corpora_of
from experiments.bert_and_gpt.models import Architecture
from experiments.bert_and_gpt.on_texts import OnTexts
from experiments.bert_and_gpt.report import MEAN
from experiments.bert_and_gpt.stages import FINETUNE, LORA, PRETRAIN, THREE, TWEETS, UPDATED, Trained, train_all
from experiments.corpora import Texts
from experiments.pages import filled
from experiments.pages.transformers_tables import TABLES
from experiments.settings import Settings
from experiments.training import Training
from stagetrace import Chain, Query, Stage, Trace
from stagetrace.errors import DataError, DescriptionError
from stagetrace.objectives import MaskedToken
from stagetrace.progress import Silent
from stagetrace.validation import BM25, Choice, Groups, validate
from stagetrace.validation.removals import Removal

pytestmark = [
    # Tiny stages are far from a minimum, and the trace says so.
    pytest.mark.filterwarnings("ignore::stagetrace.errors.StagetraceWarning"),
    # Between two of the libraries; nothing that can be called otherwise here.
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
]
FEW = Training(epochs=2, rate=5e-3, batch=8)
LINES = [
    f"the {colour} {animal} sat on the {place} and looked at the {colour} moon until it was late"
    for colour in ("red", "blue", "old")
    for animal in ("cat", "dog", "bird")
    for place in ("mat", "roof", "wall")
]
PRAISE = ["great answer tonight , i like him", "she was great , a good plan", "a good night for us"]
BLAME = ["bad answer tonight , i hate it", "he was awful , a bad plan", "an awful night for us"]


def short(plan: protocol.Plan) -> protocol.Plan:
    """The plan with a very small model and a few steps."""
    recipe = replace(
        plan.recipe,
        architecture=Architecture(
            plan.recipe.architecture.family, vocabulary=120, hidden=8, layers=1, length=12, rank=2
        ),
        **dict.fromkeys(("pretraining", "middle", "finetuning", "adapting"), FEW),
        general=24,
        tweets=16,
        tests=8,
    )
    return replace(
        plan, recipe=recipe, groups=3, orders=1, seeds=1, again={PRETRAIN: 3, FINETUNE: 3}, curvature_examples=8
    )


@pytest.fixture(scope="module")
def texts(tmp_path_factory) -> Path:
    """The folder given as --data."""
    folder = tmp_path_factory.mktemp("texts")
    for name, columns in {
        "wikitext2": {"text": ["", " = A heading = ", *LINES]},
        "gop_debate": {"text": (PRAISE + BLAME) * 4, "label": ([1] * 3 + [0] * 3) * 4},
    }.items():
        (folder / name).mkdir()
        for split in ("train", "test"):
            Dataset.from_dict(columns).to_parquet(folder / name / f"{split}-00000-of-00001.parquet")
    return folder


def call(name: str, data: Path, out: Path, *words: object) -> int:
    """The exit code of `python -m experiments NAME`, its training cut short."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["experiments", name, "--data", str(data), "--out", str(out), *map(str, words)])
        for module in (bert, gpt):
            patch.setattr(module, "PLAN", short(module.PLAN))
        try:
            main()
        except SystemExit as end:
            return int(end.code or 0)
    return 0


def result_of(out: Path) -> dict[str, Any]:
    return json.loads((out / "result.json").read_text())


@pytest.fixture(scope="module", params=["bert", "gpt"])
def out(request, texts, tmp_path_factory) -> Path:
    """A finished run; it is read here and continued in copies."""
    folder = tmp_path_factory.mktemp("out") / request.param
    assert call(request.param, texts, folder) == 0
    return folder


def test_every_chain_is_trained_traced_and_told(out):
    result = result_of(out)
    assert set(result["chains"]) == {UPDATED, LORA, THREE}
    for said in result["training"]["0"].values():
        assert said["test"]["loss"] > 0
        assert said["test"] != said["test_before"]
    for name, chain in result["chains"].items():
        stages = [PRETRAIN, TWEETS, FINETUNE] if name == THREE else [PRETRAIN, FINETUNE]
        assert set(chain["texts"]) == {MEAN, "the worst mistake", "the surest positive"}
        for found in chain["texts"].values():
            assert list(found) == stages
        for trace in chain["traces"].values():
            assert list(trace["spread"]) == stages
            assert all(each["mean_absolute"] > 0 for each in trace["spread"].values())


def test_links_follow_how_the_last_stage_was_trained(out):
    chains = result_of(out)["chains"]
    lora_ends_three = out.name == "bert"
    assert chains[UPDATED]["links"] == {FINETUNE: "Proximal"}
    assert chains[LORA]["links"] == {FINETUNE: "Frozen"}
    assert chains[THREE]["links"] == {TWEETS: "Proximal", FINETUNE: "Frozen" if lora_ends_three else "Proximal"}
    assert "shared, kept" in chains[LORA]["shared"][FINETUNE]
    assert "shared, moved" in chains[UPDATED]["shared"][FINETUNE]


def test_texts_in_the_result_are_those_the_scores_belong_to(out, texts):
    found = result_of(out)["chains"][THREE]["texts"][MEAN]
    scores = Trace.load(out / "run" / THREE / "gauss-newton-0.1")
    recipe = short(bert.PLAN).recipe
    corpora = corpora_of(Settings(texts, out), recipe.general, recipe.tweets, recipe.tests)
    for stage, given in ((PRETRAIN, corpora.general), (TWEETS, corpora.tweets), (FINETUNE, corpora.tweets)):
        worst, best = found[stage]["most_harmful"][0], found[stage]["most_helpful"][0]
        values = scores[stage].values
        for end, place in ((worst, int(values.argmax())), (best, int(values.argmin()))):
            assert (end["text"], end["row"]) == (given.texts[place], given.rows[place])
            assert end["score"] == pytest.approx(values[place].item())
            assert end["removal_effect"] == pytest.approx(-values[place].item() / len(values))


def test_a_run_that_is_called_again_trains_nothing_twice_and_ends_alike(out, texts, tmp_path):
    copy = shutil.copytree(out, tmp_path / out.name)
    kept = {path: path.read_bytes() for path in (copy / "checkpoints").glob("*.json")}
    again = {path: path.read_bytes() for path in (copy / "retrained").glob("*/retrainings.jsonl")}
    before = result_of(copy)
    (copy / "result.json").unlink()
    assert call(out.name, texts, copy) == 0
    assert len(kept) == 5
    assert {path: path.read_bytes() for path in kept} == kept
    assert {path: path.read_bytes() for path in again} == again
    after = result_of(copy)
    assert after["training"] == before["training"]
    for name, chain in before["chains"].items():
        assert after["chains"][name]["texts"] == chain["texts"]
    for name, found in before["retraining"].items():
        assert after["retraining"][name]["each_seed"][0]["effects"] == found["each_seed"][0]["effects"]


def test_other_settings_in_the_same_folder_are_refused(out, texts, tmp_path, capsys):
    copy = shutil.copytree(out, tmp_path / out.name)
    assert call(out.name, texts, copy, "--examples", 12) == 1
    assert "trained with other settings" in capsys.readouterr().err


@pytest.mark.parametrize("name", [LORA, UPDATED])
def test_each_group_has_its_own_truth_and_its_own_prediction(out, name):
    if out.name == "gpt":
        assert result_of(out)["retraining"] == {}
        return
    (seed,) = result_of(out)["retraining"][name]["each_seed"]
    groups = Groups(0.1, 3, seed=0).removals(24, torch.empty(0))
    lines = (out / "retrained" / f"{name}-seed-0" / "retrainings.jsonl").read_text().splitlines()
    true = {tuple(line["removed"]): line["loss"] - line["control"] for line in map(json.loads, lines)}
    assert seed["effects"]["true"] == pytest.approx([true[group] for group in groups])
    effect = Trace.load(out / "run" / name / "default")[PRETRAIN].removal_effect
    predicted = [sum(effect[place].item() for place in group) for group in groups]
    assert seed["effects"][protocol.OURS] == pytest.approx(predicted, rel=1e-4)
    assert (protocol.OF_STEPS in seed["estimators"]) == (name == UPDATED)


def trained(texts: Path, folder: Path) -> Trained:
    return train_all(short(bert.PLAN).recipe, Settings(texts, folder), (LORA,), Silent())


def test_the_control_by_words_reads_the_rows_behind_the_tokens(texts, tmp_path):
    both = trained(texts, tmp_path)
    effects = OnTexts(BM25("text")).removal_effects(both.chains[LORA], both.queries[LORA], FINETUNE)
    asked = both.corpora.tweets_test.texts
    plain = Chain(
        Stage("only", model=torch.nn.Linear(1, 1), objective=MaskedToken(), data=list(both.corpora.tweets.texts))
    )
    alone = BM25(str).removal_effects(plain, Query(list(asked)), "only")
    torch.testing.assert_close(effects, alone)


@dataclass(frozen=True)
class Planted(Choice):
    """Some given groups."""

    groups: tuple[Removal, ...]
    by: float = 1.0

    @property
    def name(self) -> str:
        return "planted groups"

    def removals(self, examples: int, predicted: torch.Tensor) -> list[Removal]:
        return list(self.groups)


def test_contradictory_examples_are_harmful_in_truth_and_in_prediction(texts, tmp_path, monkeypatch):
    """Each tweet stands four times, once with the other label: without these copies the loss falls, else it rises."""
    honest = stages.corpora_of
    swapped, right, others = (tuple(range(start, start + 6)) for start in (0, 6, 12))

    def planted(*arguments: Any) -> Any:
        corpora = honest(*arguments)
        labels = tuple(1 - one if i in swapped else one for i, one in enumerate(corpora.tweets.labels or ()))
        return replace(corpora, tweets=replace(corpora.tweets, labels=labels))

    monkeypatch.setattr(stages, "corpora_of", planted)
    plan = short(bert.PLAN)
    recipe = replace(plan.recipe, tweets=24, finetuning=replace(FEW, rate=1e-2, epochs=30))
    recipe = replace(recipe, architecture=replace(recipe.architecture, hidden=16))
    plan = replace(plan, rate=1e-3, again={PRETRAIN: 3, FINETUNE: 20}, recipe=recipe)
    both = train_all(plan.recipe, Settings(texts, tmp_path), (UPDATED,), Silent())
    found = validate(
        both.chains[UPDATED],
        both.queries[UPDATED],
        fit=protocol.fits(plan, UPDATED, both),
        stage=FINETUNE,
        choices=[Planted((swapped, right, others))],
        estimators=protocol.estimators(plan, both.chains[UPDATED], 0, tmp_path / "run")[1:2],
        seeds=(0,),
        processes=1,
    )
    (measured,) = found.measured
    for effects in (measured.true, measured.predicted[protocol.GAUSS_NEWTON]):
        assert effects[0] < 0 < effects[1:].min()


def test_labels_are_balanced_in_the_data_sets_order():
    texts = Texts(tuple("abcdefgh"), (0, 0, 0, 0, 0, 1, 1, 1), tuple(range(8)))
    few = balanced(texts, 5, 0, Path("tweets"))
    assert few.labels == (0, 0, 1, 1)
    assert list(few.rows) == sorted(few.rows)
    assert len(balanced(texts, 100, 0, Path("tweets"))) == 6  # as many as the rarer label allows
    with pytest.raises(DataError, match=r"tweets: sentiment needs the labels 0 and 1, got \[0\]"):
        balanced(texts.chosen([0, 1]), 2, 0, Path("tweets"))


def test_the_chosen_tweets_are_what_they_are_called(out):
    for chain in result_of(out)["chains"].values():
        asked = chain["asked"]
        sure = asked["the surest positive"]
        assert sure["label"] == 1
        assert asked["the worst mistake"]["probability_of_the_label"] < sure["probability_of_the_label"]


def test_lora_keeps_the_body_and_trains_the_head(texts, tmp_path):
    both = trained(texts, tmp_path)
    first, last = both.chains[LORA].problems
    assert set(last.kept.values()) < set(first.own.names)
    assert all("lora_" in name or "pooler" in name or "classifier" in name for name in last.own.names)


def test_a_family_is_one_of_two():
    with pytest.raises(DescriptionError, match="'bert' or 'gpt', got 'elmo'"):
        Architecture("elmo")  # pyright: ignore[reportArgumentType]


def test_pages_are_made_of_the_result(out, tmp_path):
    result, blocks = result_of(out), [*TABLES, "texts three", "texts lora asked"]
    blocks.remove("texts")
    blocks[blocks.index("left-out-groups")] = "left-out-groups lora"
    (tmp_path / out.name).mkdir()
    shutil.copy(out / "result.json", tmp_path / out.name)
    page = tmp_path / f"{out.name}.md"
    page.write_text("".join(f"<!-- table: {block} -->\n<!-- end -->\n" for block in blocks))
    made = filled(page, tmp_path)
    assert f"| {result['training']['0'][PRETRAIN]['test']['perplexity']:.0f} |" in made
    worst = result["chains"][THREE]["texts"][MEAN][TWEETS]["most_harmful"][0]
    assert f"| tweets | most harmful | {worst['score']:+.2e} | {worst['removal_effect']:+.1e} | - |" in made
    if out.name == "bert":
        seed = result["retraining"][LORA]["each_seed"][0]
        (ours,) = (line for line in made.splitlines() if line.startswith(f"| {protocol.OURS} |"))
        assert f"{seed['estimators'][protocol.OURS]['slope']:.2f}" in ours
        (words,) = (line for line in made.splitlines() if line.startswith("| BM25 |"))
        assert words.split("|")[4].strip() == "-"  # no unit, so no slope

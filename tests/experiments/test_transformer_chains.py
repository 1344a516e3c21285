"""The experiments `bert` and `gpt` from end to end, on a few dozen short texts and very small models."""

import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from experiments.estimators import GAUSS_NEWTON, OF_STEPS, OURS, on_rows
from experiments.pages import filled
from experiments.pages.texts import MEAN
from experiments.protocol import Prepared
from experiments.settings import Settings
from experiments.texts import Texts
from experiments.transformer_chains import experiment, stages
from experiments.transformer_chains.data import balanced, corpora_of
from experiments.transformer_chains.experiment import BERT
from experiments.transformer_chains.models import Architecture
from experiments.transformer_chains.stages import FINETUNE, LORA, PRETRAIN, THREE, TWEETS, UPDATED, prepare
from stagetrace import Chain, Query, Stage, Trace
from stagetrace.errors import DataError, DescriptionError
from stagetrace.objectives import MaskedToken
from stagetrace.progress import Silent
from stagetrace.validation import BM25, GroupRemovals, RemovalPlan, validate
from stagetrace.validation.removals import Removal
from tests.experiments.conftest import FEW, result_of, short, write_texts

pytestmark = [
    # Tiny stages are far from a minimum, and the trace says so.
    pytest.mark.filterwarnings("ignore::stagetrace.errors.StagetraceWarning"),
    # Between two of the libraries; nothing that can be called otherwise here.
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
]
LINES = [
    f"the {colour} {animal} sat on the {place} and looked at the {colour} moon until it was late"
    for colour in ("red", "blue", "old")
    for animal in ("cat", "dog", "bird")
    for place in ("mat", "roof", "wall")
]
PRAISE = ["great answer tonight , i like him", "she was great , a good plan", "a good night for us"]
BLAME = ["bad answer tonight , i hate it", "he was awful , a bad plan", "an awful night for us"]


@pytest.fixture(scope="module")
def texts(tmp_path_factory) -> Path:
    """The folder given as --data."""
    tweets = {"text": (PRAISE + BLAME) * 4, "label": ([1] * 3 + [0] * 3) * 4}
    columns = {"wikitext2": {"text": ["", " = A heading = ", *LINES]}, "gop_debate": tweets}
    return write_texts(tmp_path_factory.mktemp("texts"), **columns)


@pytest.fixture(
    scope="module", params=[pytest.param("bert", marks=pytest.mark.slow), pytest.param("gpt", marks=pytest.mark.slow)]
)
def out(request, call, texts, tmp_path_factory) -> Path:
    """A finished run; it is read here and continued in copies."""
    folder = tmp_path_factory.mktemp("out") / request.param
    assert call(request.param, "--data", texts, "--out", folder) == 0
    return folder


def test_every_chain_is_trained_traced_and_told(out):
    result = result_of(out)
    assert set(result["chains"]) == ({UPDATED, LORA, THREE} if out.name == "bert" else {LORA, THREE})
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
    assert chains[LORA]["links"] == {FINETUNE: "Frozen"}
    assert chains[THREE]["links"] == {TWEETS: "Proximal", FINETUNE: "Frozen" if lora_ends_three else "Proximal"}
    assert "shared, kept" in chains[LORA]["shared"][FINETUNE]
    assert "shared, moved" in chains[THREE]["shared"][TWEETS]
    if UPDATED in chains:
        assert chains[UPDATED]["links"] == {FINETUNE: "Proximal"}
        assert "shared, moved" in chains[UPDATED]["shared"][FINETUNE]


def test_texts_in_the_result_are_those_the_scores_belong_to(out, texts):
    found = result_of(out)["chains"][THREE]["texts"][MEAN]
    scores = Trace.load(out / "run" / THREE / "gauss-newton-0.1")
    recipe = short(BERT).recipe
    corpora = corpora_of(Settings(texts, out), recipe.general, recipe.tweets, recipe.tests)
    for stage, given in ((PRETRAIN, corpora.general), (TWEETS, corpora.tweets), (FINETUNE, corpora.tweets)):
        worst, best = found[stage]["most_harmful"][0], found[stage]["most_helpful"][0]
        values = scores[stage].values
        for end, place in ((worst, int(values.argmax())), (best, int(values.argmin()))):
            assert (end["text"], end["row"]) == (given.texts[place], given.rows[place])
            assert end["score"] == pytest.approx(values[place].item())
            assert end["removal_effect"] == pytest.approx(-values[place].item() / len(values))


@pytest.mark.slow
@pytest.mark.parametrize("out", ["gpt"], indirect=True)
def test_a_run_that_is_called_again_trains_nothing_twice_and_ends_alike(out, call, texts, tmp_path):
    copy = shutil.copytree(out, tmp_path / out.name)
    kept = {path: path.read_bytes() for path in (copy / "checkpoints").glob("*.json")}
    before = result_of(copy)
    (copy / "result.json").unlink()
    assert call(out.name, "--data", texts, "--out", copy) == 0
    assert len(kept) == 4
    assert {path: path.read_bytes() for path in kept} == kept
    after = result_of(copy)
    assert after["training"] == before["training"]
    for name, chain in before["chains"].items():
        assert after["chains"][name]["texts"] == chain["texts"]


def test_other_settings_in_the_same_folder_are_refused(out, call, texts, tmp_path, capsys):
    copy = shutil.copytree(out, tmp_path / out.name)
    assert call(out.name, "--data", texts, "--out", copy, "--examples", 12) == 1
    assert "trained with other settings" in capsys.readouterr().err


@pytest.mark.parametrize("name", [LORA, UPDATED])
def test_each_group_has_its_own_truth_and_its_own_prediction(out, name):
    if out.name == "gpt":
        assert result_of(out)["retraining"] == {}
        return
    (seed,) = result_of(out)["retraining"][name]["each_seed"]
    groups = GroupRemovals(0.1, 3, seed=0).removals(24, torch.empty(0))
    lines = (out / "retrained" / f"{name}-seed-0" / "retrainings.jsonl").read_text().splitlines()
    true = {tuple(line["removed"]): line["loss"] - line["control"] for line in map(json.loads, lines)}
    assert seed["effects"]["true"] == pytest.approx([true[group] for group in groups])
    effect = Trace.load(out / "run" / name / "default")[PRETRAIN].removal_effect
    predicted = [sum(effect[place].item() for place in group) for group in groups]
    assert seed["effects"][OURS] == pytest.approx(predicted, rel=1e-4)
    assert (OF_STEPS in seed["estimators"]) == (name == UPDATED)


def trained(texts: Path, folder: Path) -> dict[str, Prepared]:
    return prepare(short(BERT).recipe, Settings(texts, folder), (LORA,), Silent())


def test_the_control_by_words_reads_the_rows_behind_the_tokens(texts, tmp_path):
    both = trained(texts, tmp_path)
    effects = on_rows(BM25("text")).removal_effects(both[LORA].chain, both[LORA].query, FINETUNE)
    asked = both[LORA].data.tests.texts
    plain = Chain(
        Stage("only", model=torch.nn.Linear(1, 1), objective=MaskedToken(), data=list(both[LORA].data.tweets.texts))
    )
    alone = BM25(str).removal_effects(plain, Query(list(asked)), "only")
    torch.testing.assert_close(effects, alone)


@dataclass(frozen=True)
class Planted(RemovalPlan):
    """Some given groups."""

    groups: tuple[Removal, ...]
    by: float = 1.0

    @property
    def name(self) -> str:
        return "planted groups"

    def removals(self, examples: int, predicted: torch.Tensor) -> list[Removal]:
        return list(self.groups)


@pytest.mark.slow
def test_contradictory_examples_are_harmful_in_truth_and_in_prediction(texts, tmp_path, monkeypatch):
    """Each tweet stands four times, once with the other label: without these copies the loss falls, else it rises."""
    honest = stages.corpora_of
    swapped, right, others = (tuple(range(start, start + 6)) for start in (0, 6, 12))

    def planted(*arguments: Any) -> Any:
        corpora = honest(*arguments)
        labels = tuple(1 - one if i in swapped else one for i, one in enumerate(corpora.tweets.labels or ()))
        return replace(corpora, tweets=replace(corpora.tweets, labels=labels))

    monkeypatch.setattr(stages, "corpora_of", planted)
    plan = short(BERT)
    recipe = replace(plan.recipe, tweets=24, finetuning=replace(FEW, rate=1e-2, epochs=30))
    recipe = replace(recipe, architecture=replace(recipe.architecture, hidden=16))
    plan = replace(plan, rate=1e-3, again={PRETRAIN: 3, FINETUNE: 20}, recipe=recipe)
    both = prepare(plan.recipe, Settings(texts, tmp_path), (UPDATED,), Silent())
    found = validate(
        both[UPDATED].chain,
        both[UPDATED].query,
        fit=experiment.fits(plan, UPDATED, both[UPDATED]),
        stage=FINETUNE,
        choices=[Planted((swapped, right, others))],
        estimators=experiment.estimators(plan, both[UPDATED].chain, 0, tmp_path / "run")[1:2],
        seeds=(0,),
        processes=1,
    )
    (measured,) = found.measured
    for effects in (measured.true, measured.predicted[GAUSS_NEWTON]):
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
    first, last = both[LORA].chain.bound_stages
    assert set(last.inherited_from.values()) < set(first.trained.names)
    assert all("lora_" in name or "pooler" in name or "classifier" in name for name in last.trained.names)


def test_a_family_is_one_of_two():
    with pytest.raises(DescriptionError, match="'bert' or 'gpt', got 'elmo'"):
        Architecture("elmo")  # pyright: ignore[reportArgumentType]


def test_pages_are_made_of_the_result(out, tmp_path):
    result = result_of(out)
    blocks = [
        "learned",
        "sharing",
        "solving",
        "tracing-cost",
        "agreement lora",
        "cost",
        "texts three",
        "texts lora asked",
    ]
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
        (ours, *_) = (line for line in made.splitlines() if line.startswith(f"| {OURS} |"))
        assert f"{seed['estimators'][OURS]['slope']:.3f}" in ours
        (words,) = (line for line in made.splitlines() if line.startswith("| BM25 |"))
        assert words.split("|")[4].strip() == "-"  # no unit, so no slope

"""The experiments' pages: their tables are those of the results, and the committed ones are up to date."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from experiments import pages
from experiments.estimators import IDENTITY
from experiments.estimators import OURS as OURS_SOLVED
from experiments.pages.__main__ import ROOT, app
from experiments.paper import OURS
from stagetrace.errors import DescriptionError
from stagetrace.validation import Agreement, LinearDatamodelling, Reliability

DOCS = ROOT / "docs"
RESULTS = ROOT / "experiments" / "results"
MACHINE = {
    "hardware": {"device": "cpu", "kind": "x86_64", "cores": 2, "threads": 1},
    "versions": {"torch": "2.6"},
}
PREDICTED, TRUE = torch.tensor([1.0, 2.0, 3.0, 5.0]), torch.tensor([1.0, 3.0, 2.0, 5.0])


def choice(r: float, *, ours: str = OURS, runs: int = 2, group: bool = False) -> dict[str, Any]:
    """A choice of removals as a result holds it; Pearson's r of our score is set to `r`."""
    record = Agreement.of(PREDICTED, TRUE).record()
    lds = {ours: LinearDatamodelling.of(PREDICTED, TRUE).record()}
    return {
        "estimators": {ours: {**record, "pearson_r": r}, IDENTITY: record},
        "lds": lds if group else None,
        "reliability": Reliability.of(torch.stack([PREDICTED, TRUE])).record() if runs > 1 else None,
        "mean_absolute_effect": 0.25,
    }


def paper_result(*r: float) -> dict[str, Any]:
    seeds = [
        {
            "seed": seed,
            "choices": {"largest": choice(each), "random": choice(each)},
            "retrainings": 300,
            "retrainings_per_minute_and_process": 30.0,
        }
        for seed, each in enumerate(r)
    ]
    spent = {"in all": 1234.5, "tracing": {"in all": 4.5}}
    return {"paper": "r = 0.40", "retraining": {"each_seed": seeds}, "seconds": spent, **MACHINE}


def resolve_result() -> dict[str, Any]:
    singles, groups = (choice(0.5, ours=OURS_SOLVED, runs=1, group=group) for group in (False, True))
    found = {
        "choices": {"4 largest": singles, "4 groups of 0.1": groups},
        "retrainings": 10,
        "retrainings_per_minute_and_process": 5.0,
    }
    return {"data_sets": {"mnist": {"frozen": {"plain": [found]}}}, "seconds": 60.0, **MACHINE}


def page(folder: Path, name: str, *blocks: str, result: dict[str, Any] | None = None) -> Path:
    """A page with these blocks, and its result beside it."""
    (folder / "docs").mkdir(exist_ok=True)
    if result is not None:
        (folder / "results" / name).mkdir(parents=True)
        (folder / "results" / name / "result.json").write_text(json.dumps(result))
    path = folder / "docs" / f"{name}.md"
    path.write_text("# Prose\n\n" + "\nmore\n\n".join(f"<!-- table: {block} -->\n<!-- end -->\n" for block in blocks))
    return path


def rows(path: Path, results: Path) -> list[list[str]]:
    """The cells of all rows of the page's tables."""
    lines = pages.filled(path, results).splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]


def test_committed_pages_are_up_to_date():
    assert list(pages.stale(DOCS / "experiments", RESULTS)) == [], "type: python -m experiments.pages"


def test_every_experiment_of_the_overview_has_a_page():
    names = {path.stem for path in (DOCS / "experiments").glob("*.md")}
    assert set(pages.PAPER) <= names


def test_links_of_the_pages_lead_somewhere():
    for path in DOCS.rglob("*.md"):
        for link in re.findall(r"\]\(([^)#]+)\)", path.read_text()):
            assert (path.parent / link).exists(), f"{path.name}: {link}"


def test_agreement_is_the_mean_over_seeds_with_a_t_interval(tmp_path):
    path = page(tmp_path, "any", "agreement largest", result=paper_result(0.5, 0.7, 0.9))
    head, _, ours, identity, *truth = rows(path, tmp_path / "results")
    assert head[0] == "estimator, n = 4, 3 seeds"
    assert ours[:2] == [OURS, "0.700 (0.203 to 1.197)"]  # 0.7 +- 4.3027 * 0.2 / sqrt(3)
    assert identity[0] == IDENTITY
    assert identity[3] == "-"  # it has no unit, so no slope
    assert ours[3] != "-"
    assert ["ceiling of r", "0.97 (0.97 to 0.97)"] in truth


def test_one_seed_has_the_bootstrap_interval(tmp_path):
    path = page(tmp_path, "any", "agreement random", result=paper_result(0.5))
    low, high = Agreement.of(PREDICTED, TRUE).pearson_interval
    assert rows(path, tmp_path / "results")[2][1] == f"0.500 ({low:.3f} to {high:.3f})"


def test_paper_stands_beside_ours(tmp_path):
    path = page(tmp_path, "any", "ours", result={**paper_result(0.5, 0.7, 0.9), "estimator": IDENTITY})
    _, _, paper, largest, random = rows(path, tmp_path / "results")
    assert paper[:2] == ["paper: r = 0.40", "-"]
    assert largest[:3] == ["largest", "4", "3"]
    assert random[:3] == ["random", "4", "3"]
    assert f"Ours: {IDENTITY}." in pages.filled(path, tmp_path / "results")


def test_cost_says_hardware_threads_seconds_and_retrainings(tmp_path):
    path = page(tmp_path, "any", "cost", result=paper_result(0.5, 0.7))
    head, _, row = rows(path, tmp_path / "results")
    said = dict(zip(head, row, strict=True))
    assert said["kind"] == "x86_64"
    assert said["threads"] == "1"
    assert said["seconds of the last call"] == "1,234"
    assert said["retrainings"] == "600"
    assert said["retrainings per minute and process"] == "30"


def test_stages_solved_again_by_data_set_link_and_variant(tmp_path):
    path = page(tmp_path, "resolve", "ours singles", "lds", "lds adam", "cost", result=resolve_result())
    found = rows(path, tmp_path / "results")
    single = found[2]
    assert single[:5] == ["mnist", "frozen", "plain", "4 largest", "4"]
    assert single[6].startswith("0.500 (")
    assert found[3][1] == "groups of 10%, LDS (one seed; 95 % over groups)"
    assert found[5][1].startswith("0.80 (")  # ranks 1 2 3 4 and 1 3 2 4
    assert found[-1][-2:] == ["10", "5"]
    assert pages.NOT_RUN in pages.filled(path, tmp_path / "results")  # no adam


def test_what_is_not_there_is_said(tmp_path):
    path = page(tmp_path, "any", "ours", "figures")
    text = pages.filled(path, tmp_path / "results")
    assert text.count(pages.NOT_RUN) == 2
    assert text.startswith("# Prose\n\n<!-- table: ours -->\n")
    assert "\nmore\n" in text


def test_figures_are_linked_from_the_page(tmp_path):
    path = page(tmp_path, "any", "figures", result={})
    (tmp_path / "results" / "any" / "scores.png").write_bytes(b"")
    assert "](../results/any/scores.png)" in pages.filled(path, tmp_path / "results")


def test_overview_has_a_row_an_experiment(tmp_path):
    page(tmp_path, "cifar-updated", result=paper_result(0.5, 0.7, 0.9))
    found = {row[0]: row[-1] for row in rows(page(tmp_path, "README", "overview"), tmp_path / "results")}
    assert found["[cifar-updated](cifar-updated.md)"] == "r 0.70 (0.20 to 1.20), largest, n = 4, 3 seeds"
    assert found["[mnist-frozen](mnist-frozen.md)"] == "not run yet"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<!-- table: nothing -->\n<!-- end -->\n", "there is no table 'nothing'"),
        ("<!-- table: ours -->\n", "without its '<!-- end -->'"),
    ],
)
def test_wrong_blocks_are_refused(tmp_path, text, message):
    (tmp_path / "any.md").write_text(text)
    with pytest.raises(DescriptionError, match=message):
        pages.filled(tmp_path / "any.md", tmp_path)


def test_check_writes_nothing_and_fails_until_the_pages_are_written(tmp_path):
    path = page(tmp_path, "any", "ours", result=paper_result(0.5, 0.7))
    before = path.read_text()
    words = ["--docs", str(tmp_path / "docs"), "--results", str(tmp_path / "results")]
    call = CliRunner().invoke
    assert call(app, [*words, "--check"]).exit_code == 1
    assert path.read_text() == before
    assert call(app, words).exit_code == 0
    written = path.read_text()
    assert written != before
    assert call(app, [*words, "--check"]).exit_code == 0
    assert call(app, words).output == ""
    assert path.read_text() == written


def test_training_of_the_stages_is_said(tmp_path):
    result = paper_result(0.5, 0.7)
    plan = {"epochs": 15, "rate": 1e-3, "batch": 512, "weight_decay": 1e-3}
    said = {"plan": plan, "parameters": 11780, "test": {"accuracy": 0.99}, "gradient_norm": 0.01}
    for seed in result["retraining"]["each_seed"]:
        seed["training"] = {"pretrain": said, "finetune": said}
    steps = {"pretrain": 100, "finetune": 50}
    result["protocol"] = {"steps": steps, "rate": 1e-4, "start": "warm, with Adam's saved state", "orders": 3}
    result["counts"] = {stage: {"train": 24754} for stage in steps}
    path = page(tmp_path, "any", "training", result=result)
    found = {row[0]: row[1:] for row in rows(path, tmp_path / "results")}
    assert found["examples"] == ["24,754", "24,754"]
    assert found["trained again"] == ["100 steps, rate 0.0001", "50 steps, rate 0.0001"]
    assert found["test accuracy, % (95 %)"][0] == "99.0 (99.0 to 99.0)"
    assert "the mean of 3 batch orders" in pages.filled(path, tmp_path / "results")


def test_cleansing_stands_beside_the_paper(tmp_path):
    gain = {"n": 2, "mean": 1.5, "low": 0.5, "high": 2.5}
    gains = {"accuracy": dict.fromkeys(("measured", "query", "whole"), gain), "loss": {"measured": gain}}
    result = {
        "accuracy": {"none": gain, "harmful 10%": gain, "random 10%": gain},
        "less_none": {"harmful 10%": gains, "random 10%": gains},
        "less_random": {"harmful 10%": gains},
        "seeds": [{"models": {"none": [1] * 8, "harmful 10%": [1] * 8, "random 10%": [1]}}] * 2,
    }
    _, _, none, harmful, random, *halves = rows(
        page(tmp_path, "cleansing", "cleansed", "halves", result=result), tmp_path / "results"
    )
    assert none == ["none", "8", "58.15", "1.50 (0.50 to 2.50)", "-", "-"]
    assert harmful == ["harmful 10%", "8", "58.36", "1.50 (0.50 to 2.50)", *["+1.50 (+0.50 to +2.50)"] * 2]
    assert random[-1] == "-"
    assert halves[-1][-1] == "+1.5000 (+0.5000 to +2.5000)"
    overview = rows(page(tmp_path, "README", "overview"), tmp_path / "results")
    assert "+1.50 (+0.50 to +2.50) points over random, 2 seeds" in [row[-1] for row in overview]

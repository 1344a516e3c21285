"""The two-stage benchmark from end to end, on tiny stages: truths, the library's predictions, their scores."""

import pytest
import torch
from typer.testing import CliRunner

from benchmarks.two_stage.command import app
from benchmarks.two_stage.predictions import Predictions
from benchmarks.two_stage.score import figures
from benchmarks.two_stage.truths import Truth, read_truths
from tests.experiments.conftest import write_texts
from tests.experiments.test_transformer_chains import BLAME, LINES, PRAISE

pytestmark = [
    pytest.mark.filterwarnings("ignore::stagetrace.errors.StagetraceWarning"),
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
    pytest.mark.slow,
]
GAP = "largest gap to the recording repeated step by step, of the largest change"
EXACT = "exact, the recorded steps"


@pytest.fixture(scope="module")
def found(photos, tmp_path_factory):
    """`make` and `predict`, with tiny stages."""
    tweets = {"text": (PRAISE + BLAME) * 4, "label": ([1] * 3 + [0] * 3) * 4}
    columns = {"wikitext2": {"text": ["", " = A heading = ", *LINES]}, "gop_debate": tweets, "obw": {"text": LINES}}
    write_texts(photos, **columns)
    out = tmp_path_factory.mktemp("two-stage")
    places = [f"--data={photos}", f"--work={out / 'work'}", "--quick"]
    for words in (
        ["make", *places, f"--out={out / 'truths'}"],
        ["predict", *places, f"--truths={out / 'truths'}", f"--out={out / 'predictions'}"],
        [
            "table",
            *(f"--{name}={out / name}" for name in ("truths", "predictions", "work")),
            f"--out={out / 'results'}",
        ],
    ):
        done = CliRunner().invoke(app, words)
        assert done.exit_code == 0, (words, done.output, done.exception)
    return out


def test_the_batched_truth_is_the_recording_repeated(found):
    truths = read_truths(found / "truths")
    assert [chain for chain, _ in truths] == ["bert", "bert-lora", "cifar", "gpt"]
    for truth in truths.values():
        assert truth.facts[GAP] < 0.01
        assert truth.facts["gap of the control to the traced model, of its loss"] < 1e-4
        assert bool((truth.changes[0] != 0).all())
        assert truth.order_changes.shape == (2, 3, 6)


def test_the_exact_derivative_foresees_the_recorded_truth(found):
    truths = read_truths(found / "truths")
    exact = Predictions.read(found / "predictions" / "exact-the-recorded-steps.parquet", truths)
    for row in figures(exact, truths):
        if row["truth"] == "recorded" and row["chain"] == "cifar":  # a dozen texts do next to nothing, by rounding
            assert row["r"]["mean"] > 0.9, row
            assert 0.7 < row["slope"]["mean"] < 1.4, row


def test_every_method_has_its_file_and_its_place_in_the_table(found):
    truths = read_truths(found / "truths")
    files = sorted((found / "predictions").glob("*.parquet"))
    read = [Predictions.read(path, truths) for path in files]
    assert len(read) == 12 + 4
    bm25 = next(each for each in read if each.method == "BM25")
    assert {chain for chain, _, _ in bm25.changes} == {"bert", "bert-lora", "gpt"}
    one = next(each for each in read if each.method == "exact, mean of 1 other order")
    assert {query for _, _, query in one.changes} == {"mean"}
    assert (found / "results" / "lds.png").stat().st_size > 10_000


def test_what_is_done_is_not_done_again(found, photos, monkeypatch):
    import benchmarks.two_stage.make as make

    monkeypatch.setattr(make, "retrained", None)
    before = {path.name: Truth.read(path).losses for path in (found / "truths").glob("*.parquet")}
    words = ["make", f"--data={photos}", f"--work={found / 'work'}", "--quick", f"--out={found / 'truths'}"]
    ended = CliRunner().invoke(app, words)
    assert ended.exit_code == 0, str(ended.exception)
    for path in (found / "truths").glob("*.parquet"):
        assert torch.equal(Truth.read(path).losses, before[path.name])

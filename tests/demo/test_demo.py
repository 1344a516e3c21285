"""The demo, small: prediction against truth, the folder, the same numbers twice."""

import json
import sys
from dataclasses import asdict, replace
from functools import cache
from io import StringIO
from pathlib import Path

import pytest
import torch
from rich.console import Console

from stagetrace import Chain, Query, Trace
from stagetrace.cli.main import main
from stagetrace.demo import DemoResult, Settings, run
from stagetrace.demo.digits import load
from stagetrace.demo.result import drawing
from stagetrace.demo.run import _measured as measured
from stagetrace.demo.run import check_place
from stagetrace.errors import DescriptionError, ResultsError
from stagetrace.progress import Silent

SMALL = Settings(
    pretrain_examples=300,
    finetune_examples=200,
    channels=(2, 4),
    pretrain_decay=0.03,
    finetune_decay=0.01,
    adam_steps=60,
    shown=3,
    largest=5,
    random=3,
)


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[DemoResult, Path, str]:
    out = tmp_path_factory.mktemp("demo") / "run"
    printed = StringIO()
    result = run(out, console=Console(file=printed, width=120, color_system=None), settings=SMALL)
    return result, out, printed.getvalue()


def test_scores_predict_the_stages_really_solved_again(demo: tuple[DemoResult, Path, str]):
    largest, random = demo[0].checks
    assert largest.whole.pearson_r > 0.9
    assert largest.tenth.pearson_r > 0.999
    assert abs(largest.tenth.slope - 1) < 0.1
    assert random.tenth.spearman_r > 0.99
    for row in largest.rows:
        assert row.predicted * row.true > 0
        assert abs(row.true_tenth - row.predicted_tenth) < 0.15 * abs(row.true_tenth)


def test_both_minima_are_strict(demo: tuple[DemoResult, Path, str]):
    for stage in demo[0].stages:
        assert stage.gradient_norm < 1e-8
        assert stage.smallest_eigenvalue > 0
    assert demo[0].stages[1].smallest_eigenvalue >= 0.01 - 1e-9  # a linear head: convex, plus its weight decay
    assert all(solution.converged for solution in demo[0].trace.solutions.values())


def test_what_is_checked_is_what_is_said(demo: tuple[DemoResult, Path, str]):
    result = demo[0]
    largest, random = result.checks
    values = result.scores.values
    others = set(range(300)) - {row.index for row in largest.rows}
    assert len(largest.rows) == 5
    assert min(values[row.index].abs() for row in largest.rows) >= max(values[index].abs() for index in others)
    assert len({row.index for row in random.rows}) == 3
    for row in (*largest.rows, *random.rows):
        assert row.predicted == pytest.approx(-float(values[row.index]) / 300)
        assert row.predicted_tenth == pytest.approx(row.predicted / 10)
        assert row.digit == result.digits[row.index]


def test_the_print_shows_digits_scores_and_agreement(demo: tuple[DemoResult, Path, str]):
    result, _, text = demo
    for harmful in (True, False):
        for row in result.scores.top(3, harmful=harmful):
            assert f"#{row.index}: a {result.digits[row.index]}" in text
            assert f"score {row.score:+.2f}" in text
    assert "most harmful" in text
    assert "negative = removing it helps" in text
    for check in result.checks:
        assert f"removed: {check.whole}" in " ".join(text.split())  # a caption breaks its lines
        assert f"a tenth removed: {check.tenth}" in " ".join(text.split())
    assert text.count("█") > 20


def test_the_folder_holds_the_run_and_the_checks(demo: tuple[DemoResult, Path, str]):
    result, out, text = demo
    assert f"to look at it, open {out / 'report.html'}" in text
    page = (out / "report.html").read_text(encoding="utf-8")
    shown = json.loads(page.split('id="data">')[1].split("</script>")[0])["previews"]
    for index in result.scores.top(5).indices:
        preview = shown[f"0:{index}"]
        assert (preview["kind"], preview["label"]) == ("image", f"digit {result.digits[index]}")
    assert torch.equal(Trace.load(out)["pretrain"].values, result.scores.values)
    record = json.loads((out / "demo.json").read_text(encoding="utf-8"))
    assert [check["rows"] for check in record["checks"]] == [[asdict(r) for r in c.rows] for c in result.checks]
    assert record["checks"][0]["removed"]["slope"] == result.checks[0].whole.slope


@pytest.mark.slow
def test_two_runs_give_the_same_numbers_and_leave_torch_as_it_was(demo: tuple[DemoResult, Path, str]):
    result, out, _ = demo
    threads, state = torch.get_num_threads(), torch.manual_seed(123).get_state()
    try:
        torch.set_num_threads(3)
        again = run(out, settings=SMALL)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(again.scores.values, result.scores.values)
    assert [check.rows for check in again.checks] == [check.rows for check in result.checks]
    assert again.stages == result.stages


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """The demo in a second: small, and nothing solved again."""
    module = sys.modules["stagetrace.demo.run"]
    monkeypatch.setattr(module, "Settings", lambda: replace(SMALL, pretrain_examples=60, finetune_examples=60))
    monkeypatch.setattr(module, "_checks", lambda *_: ())


@pytest.mark.usefixtures("quick")
def test_the_command_writes_its_own_place_says_so_last_and_can_be_typed_again(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["stagetrace", "demo"])
    kept = list[bytes]()
    for _ in range(2):
        with pytest.raises(SystemExit) as ended:
            main()
        assert not ended.value.code
        page = Path(capsys.readouterr().out.splitlines()[-1].split()[-1])
        assert page == Path("runs/demo/report.html")
        assert "stagetrace demo --out runs/demo" in page.read_text(encoding="utf-8")
        kept.append((tmp_path / "runs/demo/scores/pretrain/part-00000.parquet").read_bytes())
    assert kept[0] == kept[1]
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["demo"]


@pytest.fixture
def trained_once(monkeypatch: pytest.MonkeyPatch, quick: None) -> None:
    """What is trained and scored with the same settings is so once for all tests: they are about the folder."""
    monkeypatch.setattr(sys.modules["stagetrace.demo.run"], "_measured", lambda _, settings: measured_once(settings))


@cache
def measured_once(settings: Settings) -> tuple[DemoResult, Chain, Query]:
    return measured(Silent(), settings)


@pytest.mark.slow
@pytest.mark.usefixtures("trained_once")
def test_a_demo_takes_the_place_of_another_and_leaves_what_is_not_its_own(tmp_path: Path):
    out = tmp_path / "run"
    first = run(out)
    (out / "check.json").write_text('[{"where": "pretrain", "what": "kind", "level": "NOTE", "text": "my own note"}]')
    (out / "kept").mkdir()
    second = run(out, settings=replace(SMALL, pretrain_examples=60, finetune_examples=60, seed=1))
    assert not torch.equal(first.scores.values, second.scores.values)
    assert torch.equal(Trace.load(out)["pretrain"].values, second.scores.values)
    assert "my own note" in (out / "report.html").read_text(encoding="utf-8")
    assert (out / "kept").is_dir()
    (out / "run.json").unlink()  # killed while it was moving files into place
    third = run(out)
    assert torch.equal(Trace.load(out)["pretrain"].values, third.scores.values)
    record = json.loads((out / "demo.json").read_text(encoding="utf-8"))
    del record["made_by"]  # as earlier versions wrote it
    (out / "demo.json").write_text(json.dumps(record))
    check_place(out)


@pytest.mark.parametrize("file", ["thesis.tex", "run.json", "demo.json"])
def test_a_folder_of_something_else_is_refused_before_the_work(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, file: str
):
    monkeypatch.setattr(sys.modules["stagetrace.demo.run"], "train", None)  # nothing is trained
    (tmp_path / file).write_text('{"years": "of work"}')
    with pytest.raises(ResultsError, match=r"not the demo's, and stays as it is; type another .*--out DIR"):
        run(tmp_path)
    with pytest.raises(ResultsError, match="is a file, not a folder"):
        run(tmp_path / file)
    assert [path.name for path in tmp_path.iterdir()] == [file]


@pytest.mark.slow
@pytest.mark.usefixtures("trained_once")
def test_the_folder_that_one_is_in_will_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    run(".")
    assert (tmp_path / "empty" / "report.html").exists()


def test_without_scikit_learn_it_says_what_to_type(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(DescriptionError, match=r"pip install 'stagetrace\[demo\]'"):
        run()


def test_the_splits_are_the_real_digits_each_once():
    splits = load(Settings())
    assert [len(part) for part in (splits.old, splits.old_test, splits.new, splits.new_test)] == [600, 120, 600, 477]
    assert set(splits.old.digits.tolist()) == set(range(4))
    assert set(splits.new_test.digits.tolist()) == set(range(4, 10))
    images = torch.cat([splits.old.images, splits.old_test.images, splits.new.images, splits.new_test.images])
    assert len(torch.unique(images.flatten(1), dim=0)) == 1797
    assert splits.new.data[0][1] == splits.new.digits[0] - 4


def test_a_drawing_has_two_pixels_a_character():
    image = torch.zeros(8, 8)
    image[0, 0] = image[7, 7] = image[2, 3] = image[3, 3] = 1.0
    lines = drawing(image).plain.split("\n")
    assert [len(line) for line in lines] == [8] * 4
    assert (lines[0][0], lines[3][7], lines[1][3]) == ("▀", "▄", "█")


def test_too_many_examples_are_refused():
    with pytest.raises(DescriptionError, match="type 1 to 719 examples"):
        load(Settings(pretrain_examples=720))

"""The folder of another run, or of none, is refused and left alone; so is a file of another run."""

# pyarrow and pandas have no type information.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportMissingTypeStubs=false, reportPrivateUsage=false

import json
from dataclasses import replace
from pathlib import Path

import pytest

from stagetrace.errors import ResultsError
from stagetrace.results import SIGN, RunFolder, Trace
from tests.results.folders import MakeTrace, begun, contents, finished, half_done, keep
from tests.sealed import rewrite

pytestmark = pytest.mark.usefixtures("three_a_part")


def test_a_folder_of_something_else_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(ResultsError, match=r"not a stagetrace run folder.*choose an empty or new folder"):
        RunFolder.open(tmp_path, {})
    assert list(contents(tmp_path)) == ["thesis.tex"]
    with pytest.raises(ResultsError, match="is a file"):
        RunFolder.open(tmp_path / "thesis.tex", {})
    with pytest.raises(ResultsError, match="not a stagetrace run folder"):
        Trace.load(tmp_path)
    with pytest.raises(ResultsError, match="not a stagetrace run folder"):
        Trace.load(tmp_path / "nowhere")
    assert not (tmp_path / "nowhere").exists()


def test_another_description_is_refused_by_the_leaves_that_differ(tmp_path: Path) -> None:
    old = {"chain": {"pretrain": {"model": "a", "rows": [1, 2]}}, "same": 1, "gone": True}
    new = {"chain": {"pretrain": {"model": "b", "rows": [1, 3, 4]}}, "same": 1}
    begun(tmp_path, old)
    before = contents(tmp_path)
    with pytest.raises(ResultsError) as caught:
        RunFolder.open(tmp_path, new)
    assert str(caught.value).splitlines()[1:] == [
        '  chain.pretrain.model: "a" -> "b"',
        "  chain.pretrain.rows.1: 2 -> 3",
        "  gone: true -> (absent)",
        "  chain.pretrain.rows.2: (absent) -> 4",
        "choose another folder (--out), or delete this one",
    ]
    assert contents(tmp_path) == before


def test_many_differences_are_counted_and_long_ones_cut(tmp_path: Path) -> None:
    begun(tmp_path, {f"k{i:02}": "x" * 200 for i in range(20)})
    with pytest.raises(ResultsError) as caught:
        RunFolder.open(tmp_path, {f"k{i:02}": "y" for i in range(20)})
    lines = str(caught.value).splitlines()
    assert len(lines) == 11
    assert lines[9] == "  ... and 12 more"
    assert max(map(len, lines[1:])) < 100


def test_equal_descriptions_resume_whatever_their_python_types(tmp_path: Path) -> None:
    begun(tmp_path, {"a": (1, 2), "b": {"x": float("inf"), "y": 1}})
    begun(tmp_path, {"b": {"y": 1, "x": "inf"}, "a": [1, 2]})
    with pytest.raises(ResultsError, match=r"a.0: 1 -> true"):
        RunFolder.open(tmp_path, {"a": (True, 2), "b": {"x": float("inf"), "y": 1}})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "cannot be read"),
        ("[]", "no format number"),
        (
            '{"format": 1, "status": "complete"}',
            "format 1, this stagetrace reads format 2: .* run the same command again with another --out",
        ),
        ('{"format": 2, "status": "complete", "sign": "positive helps"}', "sign is 'positive helps'"),
        (json.dumps({"format": 2, "sign": SIGN, "sha256": "c0ffee"}), "damaged or was edited"),
    ],
)
def test_a_run_json_that_cannot_be_read_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "run.json").write_text(text)
    for act in (lambda: RunFolder.open(tmp_path, {}), lambda: Trace.load(tmp_path)):
        with pytest.raises(ResultsError, match=message) as caught:
            act()
        assert "run.json" in str(caught.value)
    assert contents(tmp_path) == {"run.json": text.encode()}


def test_a_run_json_with_a_hole_is_refused(trace: MakeTrace, tmp_path: Path) -> None:
    trace().save(tmp_path)
    rewrite(tmp_path, lambda record: record["scores"]["pretrain"].update(n_examples="7"))
    with pytest.raises(ResultsError, match=r"run\.json cannot be read .*its 'n_examples' is \"7\""):
        Trace.load(tmp_path)
    rewrite(tmp_path, lambda record: record["scores"].update(pretrain={"n_queries": None}))
    with pytest.raises(ResultsError, match=r"run\.json cannot be read .*it has no 'n_examples'"):
        Trace.load(tmp_path)
    rewrite(tmp_path, lambda record: record["scores"].update(pretrain={"n_queries": None, "n_examples": 8}))
    rewrite(tmp_path, lambda record: record.update(status="done"))
    with pytest.raises(ResultsError, match=r"its 'status' is \"done\""):
        Trace.load(tmp_path)


def test_a_part_in_the_place_of_another_is_named(trace: MakeTrace, tmp_path: Path) -> None:
    half_done(tmp_path, trace(n=8))
    part = tmp_path / "scores/pretrain/part-00000.parquet"
    part.with_name("part-00001.parquet").write_bytes(part.read_bytes())
    with (
        RunFolder.open(tmp_path, trace().description) as run,
        pytest.raises(ResultsError, match=r"part-00001\.parquet .*must hold the examples 3 to 5, got 0 to 2"),
    ):
        run.part("pretrain", 1)


def test_parts_that_are_unlike_are_refused(trace: MakeTrace, tmp_path: Path) -> None:
    run = RunFolder.open(tmp_path, {})
    keep(run, trace(n=6), "pretrain", range(1))
    keep(run, trace(n=6, parts=False), "pretrain", range(1, 2))
    with pytest.raises(ResultsError, match=r"part-00001\.parquet holds scores of 6 examples without parts"):
        run.finish({})


@pytest.mark.parametrize("name", ["scores/pretrain/part-00000.parquet", "adjoints/pretrain.safetensors"])
def test_a_file_of_another_stage_is_refused(trace: MakeTrace, tmp_path: Path, name: str) -> None:
    made = trace(n=3)
    with RunFolder.open(tmp_path, made.description) as run:
        keep(run, made, "pretrain")
        keep(run, made, "finetune")
        (tmp_path / name).write_bytes((tmp_path / name.replace("pretrain", "finetune")).read_bytes())
        with pytest.raises(ResultsError, match="its stage is 'finetune', not 'pretrain'"):
            keep(run, made, "pretrain")
        with pytest.raises(ResultsError, match="its stage is 'finetune', not 'pretrain'"):
            run.finish({})


@pytest.mark.parametrize("name", ["scores/pretrain/part-00001.parquet", "adjoints/pretrain.safetensors"])
def test_a_file_of_another_run_is_refused(trace: MakeTrace, tmp_path: Path, name: str) -> None:
    """Of the same stage and the same shape: only the settings of the run were others."""
    made = trace(n=8)
    other = replace(made, description={**made.description, "damping": 0.02})
    for folder in ("half done", "done"):
        half_done(tmp_path / folder, made)
    finished(tmp_path / "done", made)
    half_done(tmp_path / "other", other)
    for folder in ("half done", "done"):
        (tmp_path / folder / name).write_bytes((tmp_path / "other" / name).read_bytes())
    with pytest.raises(ResultsError, match=f"{Path(name).name} .*belongs to another run, .* delete this file"):
        half_done(tmp_path / "half done", made)
    with pytest.raises(ResultsError, match=f"{Path(name).name} is damaged or of another run"):
        Trace.load(tmp_path / "done")

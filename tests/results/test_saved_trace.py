"""A trace, its summary, and the way to disk and back."""

# pyarrow and pandas have no type information.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportMissingTypeStubs=false, reportPrivateUsage=false

import hashlib
import json
import tempfile
from collections.abc import Callable
from dataclasses import fields, replace
from io import StringIO
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from torch import Tensor

import stagetrace.results
from stagetrace.errors import DataError, DescriptionError, ResultsError, StagetraceError
from stagetrace.results import SIGN, Part, Scores, Trace, part_size
from stagetrace.results import parts as parts_module
from stagetrace.results.manifest import identity
from stagetrace.results.seals import SEAL
from stagetrace.solvers import Equation, Shift, Tikhonov
from stagetrace.solvers.base import Solution, Status
from stagetrace.solvers.filters import Squared
from stagetrace.solvers.system import Spectrum

MakeTrace = Callable[..., Trace]
MakeSolution = Callable[..., Solution]

finite = st.floats(allow_nan=False, allow_infinity=False, width=64)
finite32 = st.floats(allow_nan=False, allow_infinity=False, width=32)
numbers = st.floats(allow_nan=True, allow_infinity=True)
names = st.text(min_size=1, max_size=12).filter(lambda name: name.isprintable())


def same_bits(left: Tensor | None, right: Tensor | None) -> bool:
    if left is None or right is None:
        return left is right
    as_bytes = [tensor.contiguous().view(torch.uint8) for tensor in (left, right)]
    return left.dtype == right.dtype and left.shape == right.shape and torch.equal(*as_bytes)


def same_solution(left: Solution, right: Solution) -> bool:
    others = [[repr(getattr(s, f.name)) for f in fields(Solution) if f.name != "value"] for s in (left, right)]
    return same_bits(left.value, right.value) and others[0] == others[1]


def there_and_back(trace: Trace) -> Trace:
    with tempfile.TemporaryDirectory() as folder:
        trace.save(Path(folder) / "run")
        return Trace.load(Path(folder) / "run")


@st.composite
def any_scores(draw: st.DrawFn, stage: str) -> Scores:
    n, queries = draw(st.integers(1, 8)), draw(st.none() | st.integers(1, 4))
    shape = (n,) if queries is None else (queries, n)
    element = finite if queries is None else finite32
    size = n * (queries or 1)

    def tensor() -> Tensor:
        values = draw(st.lists(element, min_size=size, max_size=size))
        # a matrix is kept as float32, and comes back as that
        return torch.tensor(values, dtype=torch.float64 if queries is None else torch.float32).view(shape)

    return Scores(stage, tensor(), tensor(), tensor()) if draw(st.booleans()) else Scores(stage, tensor())


equations = st.builds(
    lambda kind, damping, matrix: Equation(kind(damping), matrix),
    st.sampled_from([Shift, Tikhonov, Squared]),
    st.floats(0, 1e9),
    st.sampled_from(["H", "G"]),
)


@st.composite
def any_solution(draw: st.DrawFn) -> Solution:
    dtype = draw(st.sampled_from([torch.float64, torch.float32, torch.bfloat16, torch.float16]))
    shape = draw(st.sampled_from([(3,), (3, 2), (0,)]))
    value = torch.randn(shape, generator=torch.Generator().manual_seed(draw(st.integers(0, 99)))).to(dtype)
    return Solution(
        value=value,
        system=draw(equations),
        relative_residuals=tuple(draw(st.lists(numbers, max_size=3))),
        products=draw(st.integers(0, 10**12)),
        checks=draw(st.integers(0, 9)),
        steps=draw(st.integers(0, 9)),
        statuses=tuple(draw(st.lists(st.sampled_from(Status), max_size=3))),
        tolerance=draw(numbers),
        spectrum=draw(st.none() | st.lists(numbers, max_size=4).map(tuple).map(Spectrum)),
        notes=tuple(draw(st.lists(st.text(max_size=9), max_size=2))),
    )


@st.composite
def any_trace(draw: st.DrawFn) -> Trace:
    stages = draw(st.lists(names, min_size=1, max_size=3, unique=True))
    scored = [stage for stage in stages if draw(st.booleans())]
    return Trace(
        {stage: draw(any_scores(stage)) for stage in scored},
        {stage: draw(any_solution()) for stage in stages},
        {"n": draw(st.integers()), "x": draw(finite), "deep": {"list": [draw(st.text()), None, True]}},
        {"seconds": draw(finite)},
    )


@settings(database=None, deadline=None, max_examples=20)
@given(any_trace())
def test_round_trip(trace: Trace) -> None:
    back = there_and_back(trace)
    assert list(back) == list(trace)
    assert list(back.solutions) == list(trace.solutions)
    for stage in trace:
        for name in ("values", "via_shared", "via_head", "removal_effect"):
            assert same_bits(getattr(back[stage], name), getattr(trace[stage], name)), (stage, name)
    assert all(same_solution(back.solutions[stage], trace.solutions[stage]) for stage in trace.solutions)
    assert (back.description, back.statistics, back.versions) == (trace.description, trace.statistics, trace.versions)


@pytest.mark.parametrize("n_queries", [None, 2])
def test_round_trip_over_several_parts(trace: MakeTrace, n_queries: int | None, three_a_part: None) -> None:
    made = trace(n=8, n_queries=n_queries)
    back = there_and_back(made)
    expected = made["pretrain"].values if n_queries is None else made["pretrain"].values.float()
    assert same_bits(back["pretrain"].values, expected)


def test_a_matrix_is_rounded_once(trace: MakeTrace, tmp_path: Path) -> None:
    trace(n_queries=2).save(tmp_path / "a")
    Trace.load(tmp_path / "a").save(tmp_path / "b")
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_same_content_same_bytes(trace: MakeTrace, tmp_path: Path) -> None:
    trace().save(tmp_path / "a")
    trace().save(tmp_path / "b")
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_the_layout_is_that_of_the_contract(trace: MakeTrace, tmp_path: Path, three_a_part: None) -> None:
    trace().save(tmp_path)
    assert list(contents(tmp_path)) == [
        "adjoints/finetune.safetensors",
        "adjoints/pretrain.safetensors",
        "run.json",
        "scores/finetune/part-00000.parquet",
        "scores/pretrain/part-00000.parquet",
        "scores/pretrain/part-00001.parquet",
        "scores/pretrain/part-00002.parquet",
    ]
    record = json.loads((tmp_path / "run.json").read_text(encoding="utf-8"))
    assert (record["format"], record["status"], record["sign"]) == (2, "complete", SIGN)
    assert record["files"] == {
        name: hashlib.sha256(content).hexdigest() for name, content in contents(tmp_path).items() if name != "run.json"
    }
    assert record["scores"]["pretrain"] == {"n_examples": 7, "n_queries": None}
    assert record["solutions"]["finetune"]["statuses"] == ["CONVERGED", "MAX_STEPS"]
    assert "value" not in record["solutions"]["finetune"]
    assert list(record["solutions"]) == ["pretrain", "finetune"]
    assert set(record["versions"]) == {"stagetrace", "torch", "python", "pyarrow"}


def test_the_parquet_columns_are_those_of_the_contract(trace: MakeTrace, tmp_path: Path) -> None:
    made = trace()
    made.save(tmp_path)
    table = pq.read_table(tmp_path / "scores/pretrain/part-00000.parquet")
    number = pa.float64()
    wanted = {"index": pa.int64(), "score": number, "removal_effect": number, "via_shared": number, "via_head": number}
    assert dict(zip(table.schema.names, table.schema.types, strict=True)) == wanted
    assert table["index"].to_pylist() == list(range(7))
    assert table["score"].to_pylist() == made["pretrain"].values.tolist()
    assert table["removal_effect"].to_pylist() == [-score / 7 for score in made["pretrain"].values.tolist()]
    metadata = table.schema.metadata
    assert metadata[b"stage"] == b"pretrain"
    assert metadata[b"n_examples"] == b"7"
    assert metadata[b"units"] == b"query loss"
    assert metadata[b"sign"].decode() == SIGN
    assert "harmful" in SIGN
    assert "negative = removing it helps" in SIGN


def test_without_parts_there_are_no_columns_for_them(trace: MakeTrace, tmp_path: Path) -> None:
    trace(parts=False).save(tmp_path)
    names = pq.read_schema(tmp_path / "scores/pretrain/part-00000.parquet").names
    assert names == ["index", "score", "removal_effect"]


def test_the_parquet_columns_of_a_matrix(trace: MakeTrace, tmp_path: Path) -> None:
    made = trace(n_queries=2)
    made.save(tmp_path)
    table = pq.read_table(tmp_path / "scores/pretrain/part-00000.parquet")
    assert table.schema.names == ["index", "scores", "via_shared", "via_head"]
    assert all(pa.types.is_list(t) and t.value_type == pa.float32() for t in table.schema.types[1:])
    stored = made["pretrain"].values.float()
    assert table["scores"].to_pylist() == stored.T.tolist()
    loaded = Trace.load(tmp_path)["pretrain"]
    assert loaded.values.dtype == torch.float32
    assert same_bits(loaded.removal_effect, -stored / 7)


@pytest.mark.parametrize("with_parts", [True, False])
def test_a_matrix_with_removal_effects_of_an_older_version_is_read(
    trace: MakeTrace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, with_parts: bool
) -> None:
    made = trace(n_queries=2, parts=with_parts)
    with monkeypatch.context() as older:
        older.setattr(parts_module, "_table", with_removal_effects)
        made.save(tmp_path)
    names = pq.read_schema(tmp_path / "scores/pretrain/part-00000.parquet").names
    assert names[:3] == ["index", "scores", "removal_effect"]
    back = Trace.load(tmp_path)
    for stage in made:
        for name in ("values", "via_shared", "via_head"):
            one, other = getattr(back[stage], name), getattr(made[stage], name)
            assert (one is None and other is None) or same_bits(one, other.float())


def with_removal_effects(run: str, stage: str, part: Part) -> pa.Table:
    """A part's table as it was written before: a list of removal effects beside that of scores."""
    values = part.values.float().double()
    tensors = {"scores": values, "removal_effect": -values / part.n_examples}
    if part.via_shared is not None and part.via_head is not None:
        tensors |= {"via_shared": part.via_shared, "via_head": part.via_head}
    columns: dict[str, object] = {"index": pa.array(range(part.start, part.stop), pa.int64())}
    columns |= {name: pa.array(t.T.float().tolist(), pa.list_(pa.float32())) for name, t in tensors.items()}
    table = pa.table(columns)
    metadata = identity(run, stage) | {"n_examples": str(part.n_examples), "n_queries": str(part.n_queries or 0)}
    return table.replace_schema_metadata({**metadata, SEAL: parts_module.seal_of_table(table, metadata).hexdigest()})


def test_a_part_stays_small() -> None:
    assert part_size() == 16384
    for n_queries in (1, 100, 1000, 10**6):
        assert part_size(n_queries) == 1 or part_size(n_queries) * n_queries * 16 <= 64 * 1024**2
    assert part_size(10**9) == 1


def test_a_score_too_large_for_float32_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    huge, zero = torch.full((1, 2), 1e39, dtype=torch.float64), torch.zeros(1, 2, dtype=torch.float64)
    for scores in (Scores("s", huge), Scores("s", zero, huge, -huge)):
        with pytest.raises(DataError, match="example 0 has the score inf"):
            Trace({"s": scores}).save(tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


def test_no_file_is_a_pickle_and_no_code_makes_one(trace: MakeTrace, tmp_path: Path) -> None:
    trace().save(tmp_path)
    for path, content in contents(tmp_path).items():
        assert path.endswith((".json", ".parquet", ".safetensors"))
        if path.endswith(".parquet"):
            assert content.startswith(b"PAR1")
            assert content.endswith(b"PAR1")
        elif path.endswith(".safetensors"):
            length = int.from_bytes(content[:8], "little")
            assert set(json.loads(content[8 : 8 + length])) == {"__metadata__", "adjoint"}
        else:
            assert isinstance(json.loads(content), dict)
    for source in Path(stagetrace.results.__path__[0]).glob("*.py"):
        text = source.read_text(encoding="utf-8")
        assert not [word for word in ("pickle", "torch.save", "torch.load", "np.save", "np.load") if word in text]


def test_unknown_stage_is_a_key_error_that_lists_the_stages(trace: MakeTrace) -> None:
    with pytest.raises(KeyError) as caught:
        trace()["pretraining"]
    assert isinstance(caught.value, DescriptionError)
    assert isinstance(caught.value, StagetraceError)
    message = str(caught.value)
    assert message == "trace['pretraining']: no stage of that name has scores; type one of: 'pretrain', 'finetune'"
    with pytest.raises(KeyError, match=r"trace\.solutions\['x'\].*type one of: 'pretrain', 'finetune'"):
        trace().solutions["x"]
    with pytest.raises(DescriptionError, match=r"trace\.tokens\['x'\].*made by trace\(chain, query, tokens=True\)"):
        trace().tokens["x"]
    assert trace().tokens.get("x") is None


def test_a_trace_is_a_small_container(trace: MakeTrace) -> None:
    made = trace()
    assert list(made) == ["pretrain", "finetune"]
    assert len(made) == 2
    assert "finetune" in made
    assert "other" not in made
    with pytest.raises(TypeError):
        made.scores["x"] = made["pretrain"]  # pyright: ignore[reportIndexIssue]
    with pytest.raises(DescriptionError, match="scores under 'a' are those of stage 'pretrain'"):
        Trace({"a": made["pretrain"]})


def test_the_summary_is_loud_about_a_solve_that_failed(trace: MakeTrace, solution: MakeSolution) -> None:
    made = trace()
    console = Console(width=200, record=True, file=StringIO())
    console.print(made)
    for view in (made.summary(), console.export_text(), made._repr_html_()):
        words = " ".join(view.split())
        assert "NOT CONVERGED" in words
        assert "(H^2 + 0.01 I)" in words
        assert "is harmful: more weight on the example raises the query loss" in words
    assert made.table().rows[1][5:] == ("3.0e-01", "NOT CONVERGED: stopped at the step limit, asked for 1.0e-06")
    assert made.table().rows[0][6] == "converged"
    assert made.table().highlighted == {1}
    head, rule, *rows = made.table().markdown().splitlines()
    assert head == "| stage | examples | smallest | largest | harmful | residual | status |"
    assert rule == "| --- | ---: | ---: | ---: | ---: | ---: | --- |"
    assert [row.split(" | ")[1:2] for row in rows] == [["7"], ["3"]]
    with pytest.raises(AttributeError, match=r"Trace\.sheet\(\) is now table\(\)"):
        made.sheet()
    assert made.table().caption.startswith("NOT CONVERGED")
    assert "NOT CONVERGED: finetune" in repr(made)
    assert str(made) == made.summary()
    fine = replace(made, solutions={"pretrain": solution(), "finetune": solution()})
    assert "NOT CONVERGED" not in fine.summary() + repr(fine)
    lines = [line.split() for line in fine.summary().splitlines() if line.startswith(("  pretrain", "  finetune"))]
    assert [line[:2] for line in lines] == [["pretrain", "7"], ["finetune", "3"]]


def test_a_summary_without_solutions_or_scores(trace: MakeTrace, solution: MakeSolution) -> None:
    made = Trace({"finetune": trace()["finetune"]}, {"pretrain": solution(), "finetune": solution()})
    assert "not scored" in made.summary()
    late = Trace(trace().scores, {"finetune": solution()}).table()
    assert [row[0] for row in late.rows] == ["pretrain", "finetune"]
    assert late.rows[0][6] == "not recorded"


def test_statistics_that_json_cannot_hold_are_refused(trace: MakeTrace, tmp_path: Path) -> None:
    bad = replace(trace(), statistics={"timings": {"solve": torch.ones(1)}})
    with pytest.raises(DescriptionError, match=r"statistics\.timings\.solve: .* got a Tensor"):
        bad.save(tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


def test_saving_again_replaces_and_keeps_other_files(trace: MakeTrace, tmp_path: Path, three_a_part: None) -> None:
    run = tmp_path / "run"
    trace(n=8).save(run)
    (run / "report.html").write_text("mine")
    smaller = trace(n=2)
    smaller.save(run)
    assert not (run / "scores/pretrain/part-00001.parquet").exists()
    assert same_bits(Trace.load(run)["pretrain"].values, smaller["pretrain"].values)
    assert (run / "report.html").read_text() == "mine"


def test_saving_over_another_run_is_refused(trace: MakeTrace, tmp_path: Path) -> None:
    trace().save(tmp_path)
    before = contents(tmp_path)
    with pytest.raises(ResultsError, match="holds another run"):
        replace(trace(), description={"other": 1}).save(tmp_path)
    assert contents(tmp_path) == before

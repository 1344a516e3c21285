"""The two-stage benchmark's runner: right figures for known predictions, and one clear line for every wrong file."""

import json
from dataclasses import replace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from typer.testing import CliRunner

pytest.importorskip("matplotlib")
pytest.importorskip("scipy")

from benchmarks.two_stage import predictions as files
from benchmarks.two_stage import table, truths
from benchmarks.two_stage.command import app
from benchmarks.two_stage.predictions import KEY, Predictions
from benchmarks.two_stage.protocol import OTHER, RECORDED, Protocol
from benchmarks.two_stage.score import figures, reliabilities
from benchmarks.two_stage.truths import Truth, digest_of, read_truths, summed
from stagetrace.errors import DescriptionError, ResultsError

PROTOCOL = Protocol(percents=(10, 50), each=5, orders=2, repeated={10: 4, 50: 4})
QUERIES = ("mean", "test 3")
N = 20


def truth(chain: str, seed: int) -> Truth:
    """Changes that are sums over the members, in every order alike, and known."""
    drawn = torch.Generator().manual_seed(10 * len(chain) + seed)
    effects = torch.randn(2, N, generator=drawn, dtype=torch.float64)
    subsets = PROTOCOL.subsets(N, seed)
    repeated = tuple(place for place, name in enumerate(subsets) if PROTOCOL.in_orders(name))
    changes = summed(effects, list(subsets.values()))
    control = torch.tensor([1.0, 2.0], dtype=torch.float64)
    controls = torch.stack([control + 0.5, control - 0.25])
    orders = changes[:, list(repeated)] + controls[..., None]
    facts = {"steps": {"pretrain": 3, "finetune": 4}, "parameters": 7, "seconds of a retraining": 0.5}
    facts["largest gap to the recording repeated step by step, of the largest change"] = 1e-6
    kept = changes + control[:, None], control, repeated, orders, controls
    return Truth(chain, seed, N, QUERIES, subsets, *kept, facts)


@pytest.fixture
def known():
    made = [truth(chain, seed) for chain in ("a", "bb") for seed in (0, 1)]
    return {each.key: each for each in made}


def perfect(known, factor: float = 1.0, unit: str = "nats") -> Predictions:
    changes = {
        (*key, query): factor * each.changes[place]
        for key, each in known.items()
        for place, query in enumerate(each.queries)
    }
    return Predictions("perfect", unit, changes, {"a": 1.5, "bb": 2.0})


@pytest.mark.parametrize(("factor", "r", "slope"), [(1.0, 1.0, 1.0), (-1.0, -1.0, -1.0), (2.0, 1.0, 0.5)])
def test_known_predictions_have_known_figures(known, factor, r, slope):
    rows = figures(perfect(known, factor), known)
    assert len(rows) == 2 * 2 * 2  # chains, truths, sizes
    for row in rows:
        assert row["r"]["mean"] == pytest.approx(r)
        assert row["lds"]["mean"] == pytest.approx(r)
        assert row["slope"]["mean"] == pytest.approx(slope)
        assert row["queries"] == 2


def test_without_a_unit_there_is_no_slope_and_equal_predictions_score_nothing(known):
    assert all(row["slope"]["mean"] is None for row in figures(perfect(known, unit="none"), known))
    rows = figures(perfect(known, 0.0), known)
    assert all(row["r"]["mean"] == 0 and row["lds"]["mean"] == 0 for row in rows)
    assert all(row["slope"]["mean"] is None for row in rows)


def test_rank_correlation_is_over_the_subsets_of_one_size_and_the_mean_over_queries(known):
    one = truth("a", 0)
    said = {("a", 0, query): one.changes[place].clone() for place, query in enumerate(QUERIES)}
    said["a", 0, "test 3"] = -said["a", 0, "test 3"]
    rows = figures(Predictions("half", "nats", said), {("a", 0): one})
    assert all(row["lds"]["mean"] == pytest.approx(0) and row["r"]["mean"] == pytest.approx(1) for row in rows)


def test_only_ranks_count_for_the_linear_datamodelling_score(known):
    """Cubed changes are in the same order, and on no line with the changes."""
    cubed = {key: (each / each.abs().max()) ** 3 for key, each in perfect(known).changes.items()}
    for row in figures(Predictions("cubed", "none", cubed), known):
        assert row["lds"]["mean"] == pytest.approx(1)
        assert row["r"]["mean"] < 0.999


def test_the_mean_over_orders_is_the_other_truth(known):
    one = known["a", 0]
    worse = one.order_losses.clone()
    worse[0] = -one.order_changes[0] + one.order_controls[0][:, None]  # this order says the opposite
    broken = replace(one, order_losses=worse)
    places, mean = broken.of(OTHER, 10)
    assert torch.allclose(mean, torch.zeros_like(mean))
    assert [list(broken.subsets)[place] for place in places] == [f"10%-0{n}" for n in range(4)]
    assert torch.equal(broken.of(RECORDED, 10)[1], broken.changes[:, :5])
    agreed = reliabilities({broken.key: broken})
    assert all(row["reliability"]["mean"] == 0 for row in agreed)
    assert all(row["ceiling"]["mean"] == pytest.approx(1) for row in reliabilities(known))


def test_subsets_are_of_their_size_and_drawn_by_the_seed():
    found = PROTOCOL.subsets(N, 1)
    assert list(found) == [f"{percent}%-0{n}" for percent in (10, 50) for n in range(5)]
    assert all(len(set(found[f"10%-0{n}"])) == 2 and len(set(found[f"50%-0{n}"])) == 10 for n in range(5))
    assert found == PROTOCOL.subsets(N, 1) != PROTOCOL.subsets(N, 2)
    assert [name for name in found if PROTOCOL.in_orders(name)] == [f"{p}%-0{n}" for p in (10, 50) for n in range(4)]


def test_sums_over_members():
    effects = torch.tensor([[1.0, 10.0, 100.0], [2.0, 20.0, 200.0]])
    assert summed(effects, [(0, 2), (1,)]).tolist() == [[101.0, 10.0], [202.0, 20.0]]


def test_a_truth_comes_back_as_it_was(tmp_path, known):
    for each in known.values():
        each.write(tmp_path)
    found = read_truths(tmp_path)
    assert list(found) == list(known)
    for key, each in found.items():
        before = known[key]
        assert each.subsets == before.subsets
        assert each.queries == before.queries
        assert each.examples == N
        for name in ("losses", "control", "order_losses", "order_controls", "percents"):
            assert torch.equal(getattr(each, name), getattr(before, name)), name
    assert digest_of(found) == digest_of(known)
    assert digest_of({("a", 0): truth("a", 0)}) != digest_of(known)
    (tmp_path / "a-0.parquet").write_bytes(b"no")
    with pytest.raises(ResultsError, match=r"a-0\.parquet .*two-stage make"):
        read_truths(tmp_path)


def test_predictions_come_back_as_they_were(tmp_path, known):
    path = perfect(known).write(tmp_path / "p.parquet", known)
    found = Predictions.read(path, known)
    assert found.method == "perfect"
    assert found.unit == "nats"
    assert found.seconds == {"a": 1.5, "bb": 2.0}
    assert all(torch.equal(found.changes[key], each) for key, each in perfect(known).changes.items())


def test_rows_may_come_in_any_order(tmp_path, known):
    path = perfect(known).write(tmp_path / "p.parquet", known)
    whole = pq.read_table(path)
    pq.write_table(whole.take(torch.randperm(len(whole)).tolist()), path)
    found = Predictions.read(path, known)
    assert all(torch.equal(found.changes[key], each) for key, each in perfect(known).changes.items())


def test_chains_and_single_queries_may_be_left_out(tmp_path, known):
    few = {key: each for key, each in perfect(known).changes.items() if key[0] == "a" and key[2] == "mean"}
    path = Predictions("few", "nats", few).write(tmp_path / "p.parquet", known)
    rows = figures(Predictions.read(path, known), known)
    assert {row["chain"] for row in rows} == {"a"}
    assert all(row["queries"] == 1 for row in rows)


def _without(rows, **equal):
    return [row for row in rows if not all(row[name] == value for name, value in equal.items())]


def _set(rows, name, value):
    return [{**rows[0], name: value}, *rows[1:]]


WRONG = {
    "an unknown chain": (lambda rows: _set(rows, "chain", "c"), r"no chain 'c'.*there are: a, bb"),
    "an unknown seed": (lambda rows: _set(rows, "seed", 7), r"no seed 7 in chain 'a'; there are: 0, 1"),
    "an unknown query": (lambda rows: _set(rows, "query", "test 4"), r"no query 'test 4' .*there are: mean, test 3"),
    "an unknown subset": (lambda rows: _set(rows, "subset", "10%-09"), r"no subset '10%-09' .*there are: 10%-00"),
    "twice the same": (lambda rows: [*rows, rows[0]], r"two predictions for chain 'a', seed 0, query 'mean', subset"),
    "no number": (lambda rows: _set(rows, "change", float("nan")), r"subset '10%-00' is nan, no number"),
    "a gap": (lambda rows: rows[1:], r"no prediction for chain 'a', seed 0, query 'mean', subset '10%-00' and 0 more"),
    "a seed left out": (
        lambda rows: _without(rows, chain="bb", seed=1),
        r"nothing is predicted for chain 'bb', seed 1",
    ),
    "no mean query": (lambda rows: _without(rows, query="mean"), r"nothing is predicted for .* query 'mean'"),
    "nothing": (lambda rows: [], r"it predicts nothing"),
}


@pytest.mark.parametrize("what", WRONG)
def test_wrong_rows_are_refused_in_one_line(tmp_path, known, what):
    change, message = WRONG[what]
    path = perfect(known).write(tmp_path / "p.parquet", known)
    whole = pq.read_table(path)
    pq.write_table(pa.Table.from_pylist(change(whole.to_pylist()), schema=whole.schema), path)
    with pytest.raises(DescriptionError, match=message) as refused:
        Predictions.read(path, known)
    assert "\n" not in str(refused.value)
    assert "p.parquet" in str(refused.value)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("sign", "positive = it helps", r"'sign' must be 'negative = leaving it out helps', got 'positive = it helps'"),
        ("sign", None, r"'sign' must be"),
        ("unit", "bits", r"'unit' must be 'nats' or 'none', got 'bits'"),
        ("method", "", r"'method' must be the method's name"),
        ("seconds", [1.0], r"'seconds' must be processor seconds by chain, .*got \[1\.0\]"),
        ("seconds", None, r"'seconds' must be .*got None"),
        ("seconds", {"a": "fast"}, r"'seconds' must be .*'fast'"),
        ("seconds", {"a": -1.0}, r"'seconds' must be .*-1\.0"),
        ("seconds", {"a": float("nan")}, r"'seconds' must be .*nan"),
        ("notes", 3, r"'notes' must be a sentence, got 3"),
    ],
)
def test_another_sign_or_unit_is_refused(tmp_path, known, name, value, message):
    path = perfect(known).write(tmp_path / "p.parquet", known)
    whole = pq.read_table(path)
    said = {**json.loads(whole.schema.metadata[KEY]), name: value}
    pq.write_table(whole.replace_schema_metadata({KEY: json.dumps(said)}), path)
    with pytest.raises(DescriptionError, match=message):
        Predictions.read(path, known)


def test_files_of_another_kind_are_refused(tmp_path, known):
    path = tmp_path / "p.parquet"
    path.write_text("chain,seed")
    with pytest.raises(DescriptionError, match=r"p\.parquet: not a Parquet file"):
        Predictions.read(path, known)
    whole = pq.read_table(perfect(known).write(path, known))
    for wrong, message in (
        (whole.drop_columns(["query"]), "the columns must be chain, seed, query, subset, change"),
        (whole.set_column(1, "seed", whole["seed"].cast(pa.string())), "column 'seed' must be of int, got string"),
        (whole.replace_schema_metadata({}), "metadata must hold JSON under 'stagetrace.two-stage predictions'"),
        (whole.replace_schema_metadata({KEY: "[1]"}), "metadata must hold JSON under"),
        (whole.replace_schema_metadata({KEY: "null"}), "metadata must hold JSON under"),
    ):
        pq.write_table(wrong, path)
        with pytest.raises(DescriptionError, match=message):
            Predictions.read(path, known)


@pytest.mark.parametrize("kind", [pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string())], ids=str)
def test_strings_are_strings_however_a_library_stores_them(tmp_path, known, kind):
    path = perfect(known).write(tmp_path / "p.parquet", known)
    whole = pq.read_table(path)
    for place, name in enumerate(whole.column_names):
        if pa.types.is_string(whole.schema.field(name).type):
            other = whole[name].dictionary_encode() if pa.types.is_dictionary(kind) else whole[name].cast(kind)
            whole = whole.set_column(place, name, other)
    pq.write_table(whole, path)
    found = Predictions.read(path, known)
    assert all(torch.equal(found.changes[key], each) for key, each in perfect(known).changes.items())


def test_a_folder_is_no_file_of_predictions(tmp_path, known):
    with pytest.raises(DescriptionError, match="not a file; name each file"):
        Predictions.read(tmp_path, known)


def test_the_command_prints_a_methods_figures_and_writes_the_table(tmp_path, known):
    for each in known.values():
        each.write(tmp_path / "truths")
    path = perfect(known).write(tmp_path / "predictions" / "p.parquet", known)
    call = CliRunner()
    shown = call.invoke(app, ["score", str(path), "--truths", str(tmp_path / "truths")])
    assert shown.exit_code == 0
    assert "perfect" in shown.output
    assert "1.00 (1.00 to 1.00)" in shown.output
    places = [f"--{name}={tmp_path / name}" for name in ("predictions", "truths", "work", "out")]
    assert call.invoke(app, ["table", *places]).exit_code == 0
    found = json.loads((tmp_path / "out" / "table.json").read_text())
    assert found["lds"] == [
        {
            "method": "perfect",
            "10 %": "1.00 (1.00 to 1.00)",
            "50 %": "1.00 (1.00 to 1.00)",
            "queries": 2,
            "chains": 2,
            "seconds": 3.5,
        }
    ]
    assert found["truths"] == digest_of(known)


def test_what_is_committed_fits_together():
    """The committed predictions answer the committed truths, and the table was made of both."""
    known = read_truths()
    assert {chain for chain, _ in known} == {"cifar", "bert", "bert-lora", "gpt"}
    assert all(len(each.subsets) >= 100 for each in known.values())
    paths = sorted(files.FOLDER.glob("*.parquet"))
    methods = [Predictions.read(path, known).method for path in paths]
    found = json.loads((table.FOLDER / "table.json").read_text())
    assert found["truths"] == digest_of(known), "type: python -m benchmarks two-stage table"
    assert sorted(row["method"] for row in found["lds"]) == sorted(methods)
    size = sum(path.stat().st_size for folder in (truths.FOLDER, files.FOLDER) for path in folder.glob("*"))
    assert size < 50e6

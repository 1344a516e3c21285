"""Two-phase search: what is kept is the gradient, what is shown is exact, and no file or model is taken for another."""

import json
import os
import re
import shutil
import sys
from copy import deepcopy
from dataclasses import replace
from functools import partial
from math import inf
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.utils.data import Subset, TensorDataset
from typer.testing import CliRunner

from stagetrace import Chain, Direct, GaussNewton, Query, Stage, Unrolled, trace
from stagetrace.cli.main import app
from stagetrace.errors import DataError, DescriptionError, DifferentiationError, ResultsError
from stagetrace.index import Hits, Index, Recall, build
from stagetrace.index import agreement as agreement_module
from stagetrace.index import files as files_module
from stagetrace.index.basis import draw, principal
from stagetrace.index.codes import Products, encode
from stagetrace.index.files import codes_name, read_tensors
from stagetrace.index.gradients import ExampleGradients
from stagetrace.index.hits import save
from stagetrace.index.lookup import Ends
from stagetrace.index.recall import measured, tried
from stagetrace.index.walk import indexable
from stagetrace.objectives import Classification, Regression
from tests import jobs
from tests.index import old
from tests.replay.runs import Run, Stages

SOLVED: dict[str, Any] = {"curvature": GaussNewton(), "solver": Direct(0.1)}


@pytest.fixture(scope="module")
def job() -> tuple[Chain, Query]:
    chain, query, _ = jobs.frozen()
    return chain, query


@pytest.fixture(scope="module")
def plain(job: tuple[Chain, Query], tmp_path_factory: pytest.TempPathFactory) -> Index:
    """An index without rounding of all directions."""
    return build(job[0], job[1], tmp_path_factory.mktemp("plain") / "index", codes="float32", **SOLVED)


@pytest.fixture(scope="module")
def rough(job: tuple[Chain, Query], tmp_path_factory: pytest.TempPathFactory) -> Index:
    """An index of five numbers an example, from half of the gradients."""
    return build(job[0], job[1], tmp_path_factory.mktemp("rough") / "index", numbers=5, drawn=15, seed=3, **SOLVED)


def kept(index: Index, stage: str) -> tuple[Tensor, Tensor, Tensor]:
    """Basis, codes and scales of a stage of one part."""
    basis = read_tensors(index.folder / f"basis/{stage}.safetensors", index.manifest.index, stage)["basis"]
    held = read_tensors(index.folder / codes_name(stage, 0), index.manifest.index, stage)
    return basis, held["codes"], held["scales"]


# What is kept


@pytest.mark.parametrize("stage", ["pretrain", "finetune"])
def test_without_rounding_and_with_all_directions_the_index_has_the_exact_scores(job, plain, stage):
    result = trace(*job, **SOLVED)
    basis, codes, scales = kept(plain, stage)
    said = Products(basis.mT @ result.solutions[stage].value.float()).scores(codes, scales)[:, 0]
    exact = result[stage].values
    assert (said.double() - exact).abs().max() < 1e-5 * exact.abs().max()
    assert said.argsort().tolist() == exact.argsort().tolist()


def test_rounding_moves_a_coordinate_by_half_a_step_at_most():
    coordinates = torch.randn(50, 30, generator=torch.Generator().manual_seed(1)) * torch.logspace(-9, 3, 50)[:, None]
    coordinates[7] = 0
    codes, scales = encode(coordinates, "int8")
    assert codes.dtype == torch.int8
    assert bool(((codes.float() * scales[:, None] - coordinates).abs() <= 0.5001 * scales[:, None]).all())
    others = torch.arange(50) != 7
    assert bool((scales[others] > 0).all())
    assert bool((codes[others].abs().amax(dim=1) == 127).all())  # the whole range of a byte is used


def test_the_basis_is_the_leading_left_singular_space():
    model = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2)).double()
    x = torch.randn(20, 4, dtype=torch.float64)
    bound = Chain(Stage("fit", model=model, objective=Regression(), data=TensorDataset(x, x[:, :2] ** 2)))["fit"]
    gradients = ExampleGradients(bound.risk)
    columns, basis = gradients.vectors(range(20)), principal(gradients, range(20), 4)
    left = torch.linalg.svd(columns).U[:, :4]
    assert torch.allclose(basis @ basis.mT, left @ left.mT, atol=1e-8)
    assert torch.allclose(basis.mT @ basis, torch.eye(4, dtype=torch.float64), atol=1e-12)


class Odd(nn.Module):
    """A table, a tied use of it, a norm, and a parameter outside any layer."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.norm, self.scale = nn.Embedding(6, 4), nn.LayerNorm(4), nn.Parameter(torch.ones(4))

    def forward(self, tokens: Tensor) -> Tensor:
        return self.norm(self.table(tokens) * self.scale).mean(dim=1) @ self.table.weight.mT


def convolution() -> nn.Module:
    return nn.Sequential(nn.Unflatten(1, (1, 2, 2)), nn.Conv2d(1, 3, 2), nn.Tanh(), nn.Flatten(), nn.Linear(3, 3))


@pytest.mark.parametrize(("make", "taps"), [(Odd, True), (convolution, True), (Odd, False)])
def test_gradients_are_those_of_each_example_alone(make, taps, monkeypatch):
    if not taps:

        def refused(risk: object) -> None:
            raise DifferentiationError(f"{risk} is differentiated as a whole only")

        monkeypatch.setattr("stagetrace.index.gradients.tap", refused)
    torch.manual_seed(2)
    model = make().double()
    x = torch.randint(6, (9, 5)) if make is Odd else torch.randn(9, 4, dtype=torch.float64)
    y = torch.arange(9) % 3
    stage = Stage("fit", model=model, objective=Classification(), data=TensorDataset(x, y), batch_size=4)
    bound = Chain(stage)["fit"]
    gradients = ExampleGradients(bound.risk)
    alone = []
    for place in range(9):
        model.zero_grad()
        nn.functional.cross_entropy(model(x[place : place + 1]), y[place : place + 1]).backward()
        alone.append(torch.cat([dict(model.named_parameters())[name].grad.flatten() for name in bound.trained.names]))
    right = torch.stack(alone, dim=1)
    assert torch.allclose(gradients.vectors(range(9)), right, atol=1e-12)
    vectors = torch.randn(bound.trained.size, 3, dtype=torch.float64)
    chosen = [1, 2, 5, 6, 8]
    found = torch.cat([each for _, _, each in gradients.products(chosen, gradients.columns(vectors))])
    assert torch.allclose(found, right[:, chosen].mT @ vectors, atol=1e-12)


def test_examples_are_drawn_by_the_root_of_the_loss():
    losses = torch.tensor([-1.0, 0.0, 1.0, 4.0, 16.0]).double()
    counts = torch.zeros(5)
    for seed in range(2000):
        counts[draw(losses, 1, seed)] += 1
    assert torch.allclose(counts / 2000, torch.tensor([0, 0, 1, 2, 4]) / 7, atol=0.04)
    assert draw(losses, 3, 5) == draw(losses, 3, 5) == [2, 3, 4]
    assert draw(torch.zeros(4).double(), 9, 0) == [0, 1, 2, 3]


# What is found


def test_what_is_shown_has_the_exact_score_with_its_sign(job, rough):
    result = trace(*job, **SOLVED)
    found = rough.search(job[1], top=3, rescore=8, **SOLVED)
    for name, hits in found.items():
        exact, ranking = result[name].values, hits.ranking
        assert hits.rescored == 8
        for indices, scores in (
            (ranking.harmful, ranking.harmful_scores),
            (ranking.helpful, ranking.helpful_scores),
        ):
            assert torch.allclose(scores[0], exact[indices[0]], rtol=1e-9)
        assert ranking.harmful_scores[0, 0] > 0 > ranking.helpful_scores[0, 0]
        assert bool((ranking.harmful_scores[0].diff() <= 0).all() and (ranking.helpful_scores[0].diff() >= 0).all())


def test_with_all_examples_rescored_the_ranking_is_that_of_trace(job, rough):
    result = trace(*job, **SOLVED)
    for name, hits in rough.search(job[1], top=5, rescore=1.0, **SOLVED).items():
        assert hits.top(5).indices == result[name].top(5).indices
        assert hits.top(5, harmful=False).indices == result[name].top(5, harmful=False).indices
        assert "nothing is missing" in hits.says()


def test_a_query_is_answered_alike_alone_and_among_others(job, rough):
    chain, query = job
    together = rough.search(replace(query, reduction="none"), top=3, rescore=6, **SOLVED)["pretrain"]
    for place in (0, 4):
        one = replace(query, data=Subset(query.data, [place]), reduction="none")
        alone = rough.search(one, top=3, rescore=6, **SOLVED)["pretrain"]
        assert alone.top(3).indices == together.top(3, query=place).indices
        assert torch.allclose(alone.ranking.harmful_scores[0], together.ranking.harmful_scores[place], rtol=1e-9)
    del chain


def test_queries_in_blocks_are_answered_as_all_at_once(job, rough):
    chain, query = job
    several = replace(query, reduction="none")
    whole = rough.search(several, top=3, **SOLVED)
    size = max(bound.trained.size for bound in chain.bound_stages) * 8
    for name, hits in rough.search(several, top=3, memory=4 * 8 * size, **SOLVED).items():  # of six four, then two
        assert torch.equal(hits.ranking.harmful, whole[name].ranking.harmful)
        assert torch.equal(hits.ranking.helpful, whole[name].ranking.helpful)
        torch.testing.assert_close(hits.ranking.harmful_scores, whole[name].ranking.harmful_scores)
        assert hits.rescored == whole[name].rescored
        assert hits.ranking.solution is not None
        assert len(hits.ranking.solution.relative_residuals) == 6


def test_the_ends_of_blocks_are_those_of_the_whole():
    scores = torch.randn(3, 40, generator=torch.Generator().manual_seed(3))
    ends = Ends(4)
    for start in (0, 15, 16):
        ends.add(start, scores[:, start : {0: 15, 15: 16, 16: 40}[start]])
    for row, candidates in zip(scores, ends.candidates(), strict=True):
        order = row.argsort().tolist()
        assert candidates == sorted([*order[:4], *order[-4:]])


def test_equal_scores_leave_as_many_candidates_for_every_query():
    ends = Ends(3)
    ends.add(0, torch.stack([torch.zeros(5), torch.arange(5.0)]))
    assert ends.candidates() == [[0, 1, 2, 3, 4]] * 2
    ends = Ends(1)
    ends.add(0, torch.zeros(2, 5))
    assert [len(each) for each in ends.candidates()] == [2, 2]


def test_gradients_that_are_all_zero_are_refused():
    data = TensorDataset(torch.zeros(4, 1), torch.zeros(4, 1))
    model = nn.Linear(1, 1, bias=False)
    bound = Chain(Stage("fit", model=model, objective=Regression(), data=data))["fit"]
    with pytest.raises(DataError, match="stage 'fit': the gradients of all 4 drawn examples are zero"):
        principal(ExampleGradients(bound.risk), range(4), 3)


def test_recall_is_the_share_of_the_true_ends_among_the_candidates():
    exact = torch.arange(1000.0).repeat(2, 1) - 500
    swapped = exact.clone()
    swapped[0, 990], swapped[0, 849] = exact[0, 849], exact[0, 990]  # one of the top 100 is at place 150 at one end
    recall = measured(exact, swapped, [])
    assert recall is not None
    assert (recall.top, recall.rescored) == (100, (200,))
    assert recall.found == pytest.approx((1 - 0.01 / 4,))
    assert recall.unseen == recall.found
    assert measured(exact * 0, swapped, []) is None
    without = measured(exact, swapped, [849, 990])  # of the basis, so they are not looked for
    assert without is not None
    assert without.found[0] < without.unseen[0] == 1
    assert tried(1_000_000)[-1] == 100_000


def test_nothing_is_missed_where_every_example_is_rescored():
    for n in (1, 3, 7, 200):
        exact = torch.arange(1.0, n + 1).unsqueeze(0)
        recall = measured(exact, -exact, [])
        assert recall is not None
        assert recall.found == (1.0,)


def test_recall_of_a_build_is_what_its_searches_find(job, rough):
    """Measured by brute force: every query example alone, candidates against the true top."""
    chain, query = job
    recall = rough.stages["pretrain"].recall
    assert recall is not None
    assert (recall.queries, recall.top) == (6, 3)
    result = trace(chain, replace(query, reduction="none"), **SOLVED)
    basis, codes, scales = kept(rough, "pretrain")
    said = Products(basis.mT @ result.solutions["pretrain"].value.float()).scores(codes, scales).mT
    right = measured(result["pretrain"].values, said, [])
    assert right is not None
    assert recall.found == pytest.approx(right.found)


def test_what_may_be_missing_is_said():
    ranking = SimpleNamespace(stage="fit", n_examples=1000)
    recall = Recall(20, 100, (200, 500), (0.9, 0.99), (0.6, 0.97))
    hits = Hits(ranking, 200, recall)  # pyright: ignore[reportArgumentType]
    assert re.search(r"the other 800 were not looked at; recall@100 0\.600.*THIS IS LOW.*--rescore 1,000", hits.says())
    assert "THIS IS LOW" not in replace(hits, rescored=500).says()
    assert "0.970" in replace(hits, rescored=700).says()
    assert "was not measured" in replace(hits, recall=None).says()
    assert recall.enough() == 500


# What is refused


@pytest.fixture
def copied(rough: Index, tmp_path: Path) -> Path:
    return Path(shutil.copytree(rough.folder, tmp_path / "copied"))


@pytest.mark.parametrize("name", ["codes/pretrain/part-00000.safetensors", "basis/finetune.safetensors"])
@pytest.mark.parametrize("how", ["flipped", "missing"])
def test_a_damaged_file_is_refused_by_name(job, copied, name, how):
    path = copied / name
    if how == "missing":
        path.unlink()
    else:
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(content)
    with pytest.raises(ResultsError, match=f"{name} is {'missing' if how == 'missing' else 'damaged'}"):
        Index.open(copied, job[0])


def test_an_edited_record_and_an_unknown_format_are_refused(job, copied):
    path = copied / "index.json"
    record = json.loads(path.read_text())
    for change, words in (
        ({"target": "elsewhere"}, "edited"),
        ({"format": 99}, "format 99, this stagetrace reads"),
    ):
        path.write_text(json.dumps({**record, **change}))
        with pytest.raises(ResultsError, match=words):
            Index.open(copied, job[0])
    path.unlink()
    with pytest.raises(ResultsError, match="is no index"):
        Index.open(copied, job[0])


class Doubled:
    """Another loss of the same model."""

    def outputs(self, model: nn.Module, batch: Any) -> Tensor:
        return Classification().outputs(model, batch)

    def losses(self, outputs: Tensor, batch: Any) -> Tensor:
        return 2 * Classification().losses(outputs, batch)


def changed(chain: Chain, **settings: Any) -> Chain:
    first, second = chain.stages
    return Chain(replace(first, **settings), second)


def test_another_model_and_other_data_are_refused(job, rough):
    chain, _ = job
    first = chain.stages[0]
    model = deepcopy(first.model)
    with torch.no_grad():
        model.head.bias[0] += 0.01
    with pytest.raises(ResultsError, match="the model's values differ"):
        Index.open(rough.folder, changed(chain, model=model))
    x, y = first.data.tensors
    with pytest.raises(ResultsError, match="first or last examples differ"):
        Index.open(rough.folder, changed(chain, data=TensorDataset(x, y.flip(0))))
    with pytest.raises(ResultsError, match="it has 36 examples, and the index was made of 37"):
        Index.open(rough.folder, changed(chain, data=TensorDataset(x[1:], y[1:])))
    with pytest.raises(ResultsError, match="the gradient of example"):
        Index.open(rough.folder, changed(chain, objective=Doubled()))


def test_without_comparable_fingerprints_the_gradients_tell_another_model(job, rough, monkeypatch):
    monkeypatch.setattr(agreement_module, "SCHEME", 99)
    chain, _ = job
    Index.open(rough.folder, chain)
    model = deepcopy(chain.stages[0].model)
    with torch.no_grad():
        model.head.bias[0] += 0.05
    with pytest.raises(ResultsError, match=r"the gradient of example \d+ differs"):
        Index.open(rough.folder, changed(chain, model=model))


def test_another_index_and_anything_else_in_the_folder_is_refused(job, copied, tmp_path):
    with pytest.raises(ResultsError, match=r"index\.numbers: 5 -> 6"):
        build(job[0], job[1], copied, numbers=6, drawn=15, seed=3, **SOLVED)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("mine")
    with pytest.raises(ResultsError, match="holds something else"):
        build(job[0], job[1], tmp_path / "other", **SOLVED)
    assert (tmp_path / "other" / "notes.txt").read_text() == "mine"


def test_what_cannot_be_done_is_refused_before_anything_is_written(job, plain, tmp_path):
    chain, query = job
    with pytest.raises(DescriptionError, match="a basis of 32 gradients takes"):
        build(chain, query, tmp_path / "a", memory=1000, **SOLVED)
    with pytest.raises(DescriptionError, match=r"must be 'int8' or 'float32', got 'int4'"):
        build(chain, query, tmp_path / "a", codes="int4", **SOLVED)  # pyright: ignore[reportArgumentType]
    assert not (tmp_path / "a").exists()
    with pytest.raises(DescriptionError, match=r"a share must lie between 0 and 1, got 1\.5"):
        plain.search(query, rescore=1.5)
    with pytest.raises(DescriptionError, match="stage 'middle' is not in the index"):
        plain.search(query, of="middle")
    recorded: Any = [SimpleNamespace(name="a", recording=None), SimpleNamespace(name="b", recording=object())]
    assert indexable(recorded, None) == ["a"]
    with pytest.raises(DescriptionError, match="stage 'b' is differentiated through its recorded steps"):
        indexable(recorded, ["b"])


def test_a_gradient_that_is_not_finite_names_the_example():
    data = TensorDataset(torch.tensor([[1.0], [2.0], [inf]]), torch.zeros(3, 1))
    bound = Chain(Stage("fit", model=nn.Linear(1, 1), objective=Regression(), data=data))["fit"]
    with pytest.raises(DataError, match="example 2"):
        ExampleGradients(bound.risk).vectors([0, 2])


def test_a_recorded_stage_is_passed_through_and_the_one_before_it_found(tmp_path):
    run = Run(partial(torch.optim.SGD, lr=0.02), epochs=1)
    made = Stages((run, run), (12, 10))
    first, second = made.models({}, tmp_path)
    chain = Chain(
        Stage("first", model=first, objective=Classification(), data=made.data(0)),
        Stage(
            "second",
            model=second,
            objective=Classification(),
            data=made.data(1),
            link=Unrolled("body", tmp_path / "1"),
        ),
    )
    options: dict[str, Any] = {"curvature": {"first": GaussNewton()}, "solver": {"first": Direct(0.1)}}
    index = build(chain, Query(made.queries), tmp_path / "index", queries=0, **options)
    assert list(index.stages) == ["first"]
    hits = index.search(Query(made.queries), top=3, **options)["first"]
    result = trace(chain, Query(made.queries), **options)
    assert hits.top(3).indices == result["first"].top(3).indices
    assert torch.allclose(hits.ranking.harmful_scores[0], result["first"].values[hits.ranking.harmful[0]], rtol=1e-9)
    with pytest.raises(DescriptionError, match="score it: stagetrace score TARGET --out DIR --of second"):
        build(chain, Query(made.queries), tmp_path / "other", of="second", **options)


# A build that is killed


class Killed(BaseException):
    pass


@pytest.mark.parametrize("after", [1, 7])
def test_a_killed_build_goes_on_and_ends_with_the_same_files(job, tmp_path, monkeypatch, after):
    module = __import__("stagetrace.index.build", fromlist=["build"])
    for each in (files_module, module, agreement_module):
        monkeypatch.setattr(each, "PART", 10)
    options: dict[str, Any] = {"numbers": 5, "drawn": 15, **SOLVED}
    whole = build(job[0], job[1], tmp_path / "whole", **options)
    written: list[Path] = []
    real = module.write_tensors

    def dying(path: Path, *rest: Any) -> None:
        if len(written) == after:
            raise Killed
        real(path, *rest)
        written.append(path)

    monkeypatch.setattr(module, "write_tensors", dying)
    with pytest.raises(Killed):
        build(job[0], job[1], tmp_path / "killed", **options)
    with pytest.raises(ResultsError, match="unfinished"):
        Index.open(tmp_path / "killed", job[0])
    times = {path: path.stat().st_mtime_ns for path in written}
    monkeypatch.setattr(module, "write_tensors", real)
    found = build(job[0], job[1], tmp_path / "killed", **options)
    assert found.stages == whole.stages
    assert found.manifest.files == whole.manifest.files
    assert all(path.stat().st_mtime_ns == times[path] for path in written if path.exists())
    assert not (tmp_path / "killed" / "measuring").exists()


# The format


def test_an_index_of_format_1_still_opens_and_answers():
    """Scores by dense float64 matrices: `-(g_i . (J'J 2/n + 0.5)^-1 g)` at the last stage, J of the outputs."""
    chain, query = old.chain(), old.query()
    index = Index.open(old.FOLDER, chain)
    assert index.stages["pretrain"] == replace(index.stages["pretrain"], numbers=6, n_examples=40, bytes_each=10)
    found = index.search(query, top=3, rescore=12, curvature="gauss-newton", solver="direct")
    exact = dense_scores(chain)
    ranking = found["finetune"].ranking
    assert torch.allclose(ranking.harmful_scores[0].double(), exact[ranking.harmful[0]], rtol=1e-4)
    assert ranking.harmful[0].tolist() == exact.topk(3).indices.tolist()
    assert found["pretrain"].ranking.harmful_scores[0, 0] > 0


def dense_scores(chain: Chain) -> Tensor:
    """The last stage's scores in float64; its trained parameters are the head's."""
    stage = chain.stages[1]
    model: Any = deepcopy(stage.model).double()
    head = {name: value.detach() for name, value in model.named_parameters() if name.startswith("1")}
    rest = {name: value.detach() for name, value in model.named_parameters() if not name.startswith("1")}

    def loss(values: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return (functional_call(model, {**rest, **values}, (x[None],))[0] - y).square().mean()

    def gradients(data: TensorDataset) -> Tensor:
        x, y = (each.double() for each in data.tensors)
        found = vmap(grad(loss), (None, 0, 0))(head, x, y)
        return torch.cat([found[name].flatten(1) for name in head], dim=1)

    features = model[0](stage.data.tensors[0].double()).detach()
    inputs = torch.cat([features, torch.ones(len(features), 1, dtype=torch.float64)], dim=1)
    curvature = 2 * inputs.mT @ inputs / len(inputs) + 0.5 * torch.eye(3, dtype=torch.float64)
    g = gradients(old.query().data).mean(dim=0)
    return -gradients(stage.data) @ torch.linalg.solve(curvature, g)


# Files and the command line


def test_hits_are_written_with_their_sign(job, rough, tmp_path):
    found = rough.search(replace(job[1], reduction="none"), top=2, rescore=6, **SOLVED)
    save(found, tmp_path / "hits.parquet")
    save(found, tmp_path / "hits.csv")
    table = pq.read_table(tmp_path / "hits.parquet")
    assert table.num_rows == 2 * 6 * 2 * 2
    assert b"harmful" in table.schema.metadata[b"sign"]
    read = pa_csv.read_csv(tmp_path / "hits.csv")
    assert read.column_names == table.column_names
    assert read["index"].to_pylist() == table["index"].to_pylist()
    assert read["score"].to_pylist() == pytest.approx(table["score"].to_pylist())
    ends = set(zip(table["end"].to_pylist(), (score > 0 for score in table["score"].to_pylist()), strict=True))
    assert ends == {("harmful", True), ("helpful", False)}
    with pytest.raises(DescriptionError, match=r"ending in \.csv or \.parquet"):
        save(found, tmp_path / "hits.txt")


def test_the_command_line_builds_and_searches(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.path", [*sys.path])
    monkeypatch.setattr("os.environ", {**os.environ, "COLUMNS": "200"})
    folder, runner = str(tmp_path / "i"), CliRunner()
    solve = ["--solve", "curvature=gauss-newton"]
    built = runner.invoke(app, ["index", f"{jobs.FILE}:frozen", "--out", folder, "--numbers", "5", *solve])
    assert built.exit_code == 0, built.output
    assert "pretrain: 37 examples in 9 bytes each (5 numbers, int8)" in built.output
    words = ["--query", "4", "--stage", "pretrain", "--top", "2", "--rescore", "50%", "--out", str(tmp_path / "a.csv")]
    found = runner.invoke(app, ["search", folder, *words, *solve])
    assert found.exit_code == 0, found.output
    assert (
        "pretrain: 2 most harmful (largest scores) (query 4) of 18 examples that were scored, exactly" in found.output
    )
    assert "the other 19 were not looked at" in found.output
    rows = pa_csv.read_csv(tmp_path / "a.csv").to_pydict()
    assert set(rows["query"]) == {4}
    for option, value, said in (
        ("--rescore", "many", "must be a number of examples or a share, such as 1000 or 10%, got 'many'"),
        ("--query", "6", "has the examples 0 to 5"),
        ("--out", "a.txt", "must be a file ending in .csv or .parquet"),
    ):
        refused = runner.invoke(app, ["search", folder, option, value])
        assert said in str(refused.exception)

"""The check by retraining: against stages really solved again by the oracle, and against what must be refused."""

import json
import warnings
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from stagetrace import Chain, Hessian, Lanczos, Query, Scores, Trace, trace
from stagetrace.curate import Curation, Drop, curate, verify
from stagetrace.curate.record import Record, verified_table
from stagetrace.curate.verify import FixedSets, random_sets
from stagetrace.curate.write import write_note
from stagetrace.errors import CurvatureWarning, DescriptionError
from stagetrace.validation import SGD, Resolve, Steps
from tests import chains, jobs, oracles
from tests.curate.traces import traced

CASE = chains.ridge("ridge", chains.frozen("embedding"))
EXACT: dict[str, Any] = {"curvature": Hessian(), "solver": Lanczos(damping=0.0, rtol=1e-10)}


@pytest.fixture(scope="module")
def solved() -> tuple[Chain, Query, Trace]:
    """A chain at its minimum, and its trace."""
    chain, query = chains.chain_of(CASE, oracles.solved(CASE)), chains.query_of(CASE)
    return chain, query, trace(chain, query, **EXACT)


def test_the_true_change_is_that_of_solving_again(solved: tuple[Chain, Query, Trace]):
    chain, query, run = solved
    curation = curate(run, rule=Drop(2))
    found = verify(curation, chain, query, fit=Resolve(), random=3, seed=1, processes=1)
    n = curation.scores.n_examples
    sets = (curation.drop, *random_sets(curation, 3, 1))
    weights = torch.full((4, n), 1 / n, dtype=torch.float64)
    for row, removed in zip(weights, sets, strict=True):
        row[list(removed)] = 0
    before = oracles.query_losses(CASE, oracles.solved(CASE)[-1]).mean()
    true = oracles.solved_again(CASE, 0, weights).mean(dim=-1) - before
    assert found.effects.shape == (1,)  # nothing is drawn
    assert found.random_effects.shape == (1, 3)
    assert torch.allclose(torch.cat([found.effects, found.random_true]), true, rtol=1e-6)
    predicted = [-run["pretrain"].values[list(removed)].sum().item() / n for removed in sets]
    assert torch.allclose(torch.tensor([found.predicted, *found.random_predicted.tolist()]), torch.tensor(predicted))
    assert found.true < 0  # what was predicted to harm did
    assert found.random_better == int((true[1:] <= true[0]).sum())
    assert found.retrainings == len(set(sets))


def test_a_query_that_was_not_reduced_counts_by_its_mean(solved: tuple[Chain, Query, Trace]):
    chain, query, run = solved
    each = replace(query, reduction="none")
    one = verify(curate(run, rule=Drop(2)), chain, query, fit=Resolve(), random=2, processes=1)
    curation = curate(trace(chain, each, **EXACT), rule=Drop(2))
    many = verify(curation, chain, each, fit=Resolve(), random=2, processes=1)
    assert torch.allclose(many.effects, one.effects)
    assert many.predicted == pytest.approx(one.predicted, rel=1e-6)


def test_random_sets_are_drawn_by_the_seed_alone():
    curation = curate(traced(torch.randn(30).tolist()), rule=Drop(6))
    sets = random_sets(curation, 20, 3)
    assert sets == random_sets(curation, 20, 3) != random_sets(curation, 20, 4)
    assert {len(drawn) for drawn in sets} == {6}
    assert all(list(drawn) == sorted(set(drawn)) for drawn in sets)
    assert {index for drawn in sets for index in drawn} == set(range(30))  # what was dropped may be drawn, too
    other = curate(traced(torch.arange(30.0).tolist()), rule=Drop(6))
    assert random_sets(other, 20, 3) == sets


def test_random_sets_have_as_many_of_each_balanced_class():
    labels = ["a"] * 20 + ["b"] * 10
    curation = curate(traced(torch.randn(30).tolist()), rule=Drop(6), classes=labels)
    wanted = Counter(labels[index] for index in curation.drop)
    for drawn in random_sets(curation, 10, 0):
        assert Counter(labels[index] for index in drawn) == wanted


def test_sets_side_by_side_are_those_given():
    choice = FixedSets(((0, 1), (2, 3)))
    assert choice.removals(4, torch.zeros(4)) == [(0, 1), (2, 3)]
    assert choice.name == "2 dropped, and 1 random sets of as many"


@pytest.mark.filterwarnings("ignore::stagetrace.errors.CurvatureWarning", "ignore:validate. query loss")
def test_runs_are_kept_apart_and_written_down(tmp_path: Path):
    chain, query, options = jobs.frozen()
    curation = curate(trace(chain, query, **options), rule=Drop(3))
    curation.write(tmp_path)
    fit = fit_of(4)
    found = verify(curation, chain, query, fit=fit, random=2, seeds=(0, 1), processes=1, out=tmp_path / "retrained")
    assert found.effects.shape == (2,)
    assert found.random_effects.shape == (2, 2)
    assert found.true == found.effects.mean().item()
    write_note(Record(curation, verified=found, fits={"pretrain": "sgd"}), tmp_path)
    said = json.loads((tmp_path / "curation.json").read_text())
    assert said["verified"]["true_change_of_each_run"] == found.effects.tolist()
    assert [s["true_change_of_each_run"] for s in said["verified"]["random_sets"]] == found.random_effects.mT.tolist()
    assert said["dropped"] == 3
    assert said["verified"]["fits"] == {"pretrain": "sgd"}
    table = verified_table(curation, found, {"pretrain": "sgd"})
    assert [row[0] for row in table.rows] == ["dropped by the rule", "random set 1", "random set 2"]
    assert table.rows[0][1] == f"{curation.predicted:+.3e}"
    assert table.rows[0][2].startswith(f"{found.true:+.3e} (")
    note = (tmp_path / "curation.md").read_text()
    assert f"The rule: {found.true:+.3e} true, {found.predicted:+.3e} predicted" in note
    assert f"{found.random_better} of 2 random sets did as well or better" in note


def fit_of(steps: int) -> Any:
    return Steps(SGD(0.05), steps, 8)


def other_data(chain: Chain) -> Chain:
    first, last = chain.stages
    return Chain(replace(first, data=jobs.examples(37, 5)), last)


def test_only_what_was_traced_is_trained_again(solved: tuple[Chain, Query, Trace]):
    chain, query, options = jobs.frozen()
    curation = of(chain, query, options)
    for given, asked, words in (
        (other_data(chain), query, r"stages\.pretrain\.data\.ends"),
        (chain, Query(jobs.examples(6, 8)), r"query\.data\.ends"),
        (solved[0], solved[1], "37 scores; give the chain that was traced"),
        (jobs.three()[0], query, r"stages\.middle"),
    ):
        with pytest.raises(DescriptionError, match=words):
            verify(curation, given, asked, fit=fit_of(1), processes=1)
    with pytest.raises(DescriptionError, match="at least 2"):
        verify(curation, chain, query, fit=fit_of(1), random=1, processes=1)
    foreign = Trace({"x": Scores("x", torch.ones(37).double().cumsum(0))}, description=curation.run)
    with pytest.raises(DescriptionError, match="'x'"):
        verify(curate(foreign, rule=Drop(1)), chain, query, fit=fit_of(1), processes=1)


def of(chain: Chain, query: Query, options: Any) -> Curation:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CurvatureWarning)
        return curate(trace(chain, query, **options), rule=Drop(3))

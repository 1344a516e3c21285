"""Settings and arguments of another kind are refused; names stand for settings."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from stagetrace import CG, Chain, Direct, GaussNewton, Hessian, Lanczos, Query, Stage, trace
from stagetrace.errors import DescriptionError
from tests.refusals.described import Bad, Described, at, refused

TABLE = [
    Bad("an unknown reduction", at("query", reduction="max"), ("the query", "'mean', 'sum' or 'none'", "'max'")),
    Bad("`of` an unknown stage", at("settings", of="nope"), ("of", "'nope'", "'pretrain', 'finetune'")),
    Bad("`of` one unknown stage", at("settings", of=["pretrain", "nope"]), ("of", "'nope'", "'pretrain', 'finetune'")),
    Bad("`of` no stage", at("settings", of=[]), ("of", "name at least one")),
    Bad(
        "curvature of an unknown stage",
        at("settings", curvature={"nope": Hessian()}),
        ("curvature", "'nope'", "'pretrain', 'finetune'"),
    ),
    Bad(
        "solver of an unknown stage",
        at("settings", solver={"nope": Lanczos()}),
        ("solver", "'nope'", "'pretrain', 'finetune'"),
    ),
    Bad(
        "a class of curvature",
        at("settings", curvature=Hessian),
        ("curvature of stage 'pretrain'", "an instance such as Auto("),
    ),
    Bad(
        "a class for a stage",
        at("settings", curvature={"finetune": GaussNewton}),
        ("curvature of stage 'finetune'", "an instance such as Auto("),
    ),
    Bad(
        "a class of solver",
        at("settings", solver=Direct),
        ("solver of stage 'pretrain'", "an instance such as Lanczos("),
    ),
    Bad(
        "a solver for a curvature",
        at("settings", curvature=CG()),
        ("curvature of stage 'pretrain'", "an instance such as Auto("),
    ),
    Bad(
        "a word for a solver",
        at("settings", solver="gmres"),
        ("solver of stage 'pretrain'", "an instance such as Lanczos(", "'normal-cg', 'cg'", "'gmres'"),
    ),
    Bad(
        "a word for a curvature",
        at("settings", curvature={"finetune": "Gauss"}),
        ("curvature of stage 'finetune'", "'auto', 'hessian', 'gauss-newton', 'ekfac', 'identity'", "'Gauss'"),
    ),
    Bad(
        "a curvature's word for a solver",
        at("settings", solver="hessian"),
        ("solver of stage 'pretrain'", "'lanczos'", "'hessian'"),
    ),
]


@pytest.mark.parametrize(
    ("options", "says"),
    [({"of": 3}, r"of=\['pretrain'\]"), ({"out": 3}, "must be a folder"), ({"progress": "x"}, "must be True or False")],
)
def test_options_of_another_kind_are_refused(options: dict[str, Any], says: str):
    described = Described()
    chain = Chain(Stage("pretrain", **described.pretrain), Stage("finetune", **described.finetune))
    with pytest.raises(DescriptionError, match=says):
        trace(chain, Query(**described.query), **options)


@pytest.mark.parametrize("bad", TABLE, ids=lambda bad: bad.what)
def test_a_setting_is_refused_in_one_line_and_nothing_is_written(bad: Bad, tmp_path: Path):
    refused(bad, tmp_path / "out")


def test_the_run_that_is_broken_here_is_sound(tmp_path: Path):
    assert list(Described().trace(tmp_path / "out")) == ["pretrain", "finetune"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (
            lambda chain, query: (chain, query.data),
            r"the query is a TensorDataset; write trace\(chain, Query\(data\)\)",
        ),
        (lambda chain, query: (chain, [*query.data]), r"the query is a list; write trace\(chain, Query\(data\)\)"),
        (lambda chain, query: (chain, Query), r"the query is the class Query; write trace\(chain, Query\(test_set\)\)"),
        (lambda chain, query: (chain, None), r"the query is missing \(None\)"),
        (lambda chain, query: (chain, chain.stages[1]), r"the query is a Stage; .*the examples whose loss"),
        (lambda chain, query: (chain.stages[0], query), r"the chain is a Stage; write trace\(Chain\(stage\), query\)"),
        (lambda chain, query: ([*chain.stages], query), r"write trace\(Chain\(pretrain, finetune\), query\)"),
        (lambda chain, query: (chain.last.stage.model, query), r"the chain is a Net; write trace\(Chain\("),
        (lambda chain, query: (query, chain), r"the two arguments are swapped"),
    ],
    ids=["data", "examples", "class", "nothing", "stage", "chain of one", "list of stages", "model", "swapped"],
)
def test_what_is_no_chain_or_no_query_is_refused_in_one_line(arguments: Callable[..., Any], says: str):
    described = Described()
    chain = Chain(Stage("pretrain", **described.pretrain), Stage("finetune", **described.finetune))
    with pytest.raises(DescriptionError, match=says) as caught:
        trace(*arguments(chain, Query(**described.query)))
    assert "\n" not in str(caught.value)


def test_names_stand_for_what_the_command_line_takes():
    described = Described()
    described.settings = {"curvature": GaussNewton(), "solver": Lanczos()}
    expected = described.trace()
    described.settings = {"curvature": "gauss-newton", "solver": {"pretrain": "lanczos", "finetune": Lanczos()}}
    found = described.trace()
    for name in described.names:
        assert torch.equal(found[name].values, expected[name].values)
    assert found.description["curvature"] == expected.description["curvature"]


def test_scores_of_an_unknown_stage():
    with pytest.raises(KeyError, match=r"'nope'.*type one of: 'pretrain', 'finetune'") as caught:
        Described().trace()["nope"]
    assert isinstance(caught.value, DescriptionError)

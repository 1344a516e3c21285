"""What cannot give right numbers is refused before anything is written, in one line that says where and what to do."""

import warnings
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from stagetrace import (
    CG,
    Chain,
    Direct,
    Frozen,
    GaussNewton,
    Hessian,
    Identity,
    Lanczos,
    Proximal,
    Query,
    Stage,
    Trace,
    trace,
)
from stagetrace.errors import DataError, DescriptionError, ResultsError, StagetraceWarning
from stagetrace.objectives import Classification
from tests.jobs import Net, after, examples

# A sound chain, and ways to break it


class Described:
    """Arguments of a sound run: "pretrain", then "finetune" with the same embedding, then a query; all changeable."""

    def __init__(self) -> None:
        link, model = Frozen("embedding"), Net(0)
        self.pretrain: dict[str, Any] = {"model": model, "objective": Classification(), "data": examples(40, 1)}
        self.finetune: dict[str, Any] = self.pretrain | {"model": after(model, link, 1), "link": link}
        self.names = ("pretrain", "finetune")
        self.query: dict[str, Any] = {"data": examples(40, 2)}
        self.settings: dict[str, Any] = {"curvature": GaussNewton()}

    def broken(self, change: Callable[["Described"], None]) -> "Described":
        change(self)
        return self

    def trace(self, out: Path | None = None) -> Trace:
        first, second = self.names
        chain = Chain(Stage(first, **self.pretrain), Stage(second, **self.finetune))
        return trace(chain, Query(**self.query), out=out, **self.settings)


def at(path: str, **changes: Any) -> Callable[[Described], None]:
    """Change arguments of "pretrain", "finetune", "query" or "settings"."""
    return lambda described: getattr(described, path).update(changes)


def model_of(path: str, change: Callable[[nn.Module], object]) -> Callable[[Described], None]:
    """Change a stage's model, and leave the other's alone."""

    def broken(described: Described) -> None:
        arguments = getattr(described, path)
        arguments["model"] = deepcopy(arguments["model"])
        change(arguments["model"])

    return broken


def named(*names: str) -> Callable[[Described], None]:
    return lambda described: setattr(described, "names", names)


def both(*changes: Callable[[Described], None]) -> Callable[[Described], None]:
    def all_of_them(described: Described) -> None:
        for change in changes:
            change(described)

    return all_of_them


# Data sets and losses that no number can be trusted on


class Noisy(Dataset):
    """The same label and another input at every read."""

    def __len__(self) -> int:
        return 40

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return torch.rand(4, dtype=torch.float64), 0


class Stream(IterableDataset):
    def __iter__(self):
        return iter(examples(40, 1))


class Picture:
    """What PIL gives: an object that nothing knows how to stack."""


def spoilt(n: int, at: int, value: float) -> TensorDataset:
    """Examples of which one has an input that makes its loss NaN or infinite."""
    data = examples(n, 1)
    data.tensors[0][at] = value
    return data


def as_it_is(model: nn.Module, batch: Any) -> Tensor:
    """A loss that takes an example's first input as it is."""
    inputs, _ = batch
    return model(inputs.clamp(-1, 1)).sum(dim=1) + inputs[:, 0]


def reduced(model: nn.Module, batch: Any) -> Tensor:
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


def per_logit(model: nn.Module, batch: Any) -> Tensor:
    return model(batch[0])


def number(model: nn.Module, batch: Any) -> Any:
    return float(reduced(model, batch))


def relative(model: nn.Module, batch: Any) -> Tensor:
    """The loss of each example relative to the batch's largest."""
    losses = nn.functional.cross_entropy(model(batch[0]), batch[1], reduction="none")
    return losses / losses.max()


class OfLabels:
    """An objective whose losses take labels where the library gives the batch."""

    def outputs(self, model: nn.Module, batch: Any) -> Tensor:
        return model(batch[0])

    def losses(self, outputs: Tensor, labels: Tensor) -> Tensor:
        return nn.functional.cross_entropy(outputs, labels, reduction="none")


def sound(model: nn.Module, batch: Any) -> Tensor:
    return nn.functional.cross_entropy(model(batch[0]), batch[1], reduction="none")


def two_blocks(model: nn.Module) -> None:
    """Put a layer under the embedding that the other stage does not have."""
    model.get_submodule("embedding").register_parameter("scale", nn.Parameter(torch.ones(3, dtype=torch.float64)))


def integer_embedding(model: nn.Module) -> None:
    layer = model.get_submodule("embedding")
    layer.weight = nn.Parameter(torch.ones(3, 4, dtype=torch.int64), requires_grad=False)


def wider(model: nn.Module) -> None:
    model.embedding = nn.Linear(4, 5).double()


def shift(model: nn.Module) -> None:
    with torch.no_grad():
        model.get_parameter("embedding.bias")[1] += 0.5


def all_kept(described: Described) -> None:
    described.finetune |= {"model": deepcopy(described.pretrain["model"]), "link": Frozen("")}


def freeze(model: nn.Module) -> None:
    model.requires_grad_(False)


def diverged(model: nn.Module) -> None:
    model.get_parameter("head.weight").data[0] = torch.nan


# The table


@dataclass(frozen=True)
class Bad:
    """Something wrong, and words that its message must hold: where it is, and what to do."""

    what: str
    broken: Callable[[Described], None]
    words: tuple[str, ...]
    error: type[Exception] = DescriptionError


SHARED = "finetune"
NEITHER_NAN = "remove the example or fix its data"

TABLE = [
    # the mapping
    Bad(
        "shapes that differ",
        model_of("finetune", wider),
        ("'finetune'", "'embedding.weight'", "[5, 4]", "[3, 4]", "share only"),
    ),
    Bad(
        "unknown prefix here",
        at("finetune", link=Frozen({"body": "embedding"})),
        ("'finetune'", "'body'", "it has 'embedding.weight'"),
    ),
    Bad(
        "unknown prefix before",
        at("finetune", link=Frozen({"embedding": "body"})),
        ("'finetune'", "previous stage", "'body'", "it has 'embedding.weight'"),
    ),
    Bad("half a name", at("finetune", link=Frozen("embed")), ("'finetune'", "'embed'", "it has 'embedding.weight'")),
    Bad(
        "no counterpart",
        model_of("finetune", two_blocks),
        ("'finetune'", "'embedding.scale'", "no counterpart", "more narrowly"),
    ),
    Bad(
        "kept values that differ",
        model_of("finetune", shift),
        ("'finetune'", "'embedding.bias'", "'pretrain'", "0.5", "link=Proximal", "load the checkpoint"),
    ),
    Bad(
        "shared with two",
        at("finetune", link=Frozen({"": "", "embedding.bias": "head.bias"})),
        ("'finetune'", "'embedding.bias'", "only one"),
    ),
    Bad("nothing shared", lambda d: at("finetune", link=Frozen({}))(d), ("Frozen", "name at least one")),
    Bad(
        "a link on the first stage",
        at("pretrain", link=Frozen("embedding")),
        ("'pretrain'", "first of the chain", "remove its link="),
    ),
    Bad(
        "no link on a later one",
        at("finetune", link=None),
        ("'finetune'", "'pretrain'", "link=Frozen(...)", "link=Proximal(...)"),
    ),
    Bad(
        "integer parameters",
        both(model_of("pretrain", integer_embedding), model_of("finetune", integer_embedding)),
        ("'finetune'", "'embedding.weight'", "int64", "leave it out of the link"),
    ),
    # stages
    Bad(
        "no trainable parameters",
        model_of("pretrain", freeze),
        ("'pretrain'", "trained nothing", "requires_grad_(True)"),
    ),
    Bad(
        "nothing left to train",
        all_kept,
        ("'finetune'", "trained nothing", "4 of its parameters are kept", "requires_grad_(True)"),
    ),
    Bad("two stages of one name", named("tune", "tune"), ("'tune'", "give each its own")),
    Bad("a name that is no folder", named("../pretrain", "finetune"), ("'../pretrain'", "letters, digits")),
    Bad(
        "negative weight decay", at("finetune", weight_decay=-0.1), ("'finetune'", "weight_decay", "at least 0", "-0.1")
    ),
    Bad("no batch", at("finetune", batch_size=0), ("'finetune'", "batch_size", "at least 1", "0")),
    Bad("fewer than no workers", at("finetune", workers=-1), ("'finetune'", "workers", "at least 0", "-1")),
    Bad(
        "weights that are no numbers",
        model_of("finetune", diverged),
        ("'finetune'", "NaN", "'head.weight'", "checkpoint"),
    ),
    Bad(
        "a weight beyond all numbers",
        model_of("finetune", lambda m: m.get_parameter("head.bias").data[:1].fill_(torch.inf)),
        ("'finetune'", "1 of", "infinite", "'head.bias'"),
    ),
    Bad(
        "negative alpha",
        lambda d: at("finetune", link=Proximal("embedding", alpha=-1.0))(d),
        ("Proximal(alpha=...)", "positive number", "-1.0"),
    ),
    Bad(
        "no alpha",
        lambda d: at("finetune", link=Proximal("embedding", alpha=0))(d),
        ("Proximal(alpha=...)", "positive number or 'auto'"),
    ),
    Bad(
        "alpha from no movement",
        at("finetune", link=Proximal("embedding", alpha="auto")),
        ("'finetune'", "did not move", "give a number"),
    ),
    Bad(
        "a loss in a module",
        at("pretrain", objective=nn.CrossEntropyLoss()),
        ("'pretrain'", "CrossEntropyLoss", "stagetrace.objectives"),
    ),
    Bad(
        "a class of a loss", at("pretrain", objective=Classification), ("'pretrain'", "Classification()", "parentheses")
    ),
    # data
    Bad("no data", at("pretrain", data=[]), ("'pretrain'", "empty", "at least one"), DataError),
    Bad("no query", at("query", data=[]), ("the query", "empty", "at least one"), DataError),
    Bad(
        "data that change",
        at("finetune", data=Noisy()),
        ("'finetune'", "example 0", "two reads", "without randomness"),
        DataError,
    ),
    Bad(
        "a query that changes",
        at("query", data=Noisy()),
        ("the query", "example 0", "two reads", "without randomness"),
        DataError,
    ),
    Bad(
        "a shuffling loader",
        at("pretrain", data=DataLoader(examples(40, 1), shuffle=True)),
        ("'pretrain'", "DataLoader", "data=loader.dataset"),
    ),
    Bad(
        "a loader in order",
        at("pretrain", data=DataLoader(examples(40, 1))),
        ("'pretrain'", "DataLoader", "data=loader.dataset"),
    ),
    Bad(
        "a loader as a query",
        at("query", data=DataLoader(examples(40, 1))),
        ("the query", "DataLoader", "data=loader.dataset"),
    ),
    Bad("a stream", at("pretrain", data=Stream()), ("'pretrain'", "map-style", "or a list", "Stream")),
    Bad(
        "a generator",
        at("pretrain", data=(x for x in examples(40, 1))),
        ("'pretrain'", "map-style", "or a list", "generator"),
    ),
    Bad("a dict", at("pretrain", data={"x": [1, 2], "y": [0, 1]}), ("'pretrain'", "dict", "pass a list of examples")),
    Bad(
        "pictures",
        at("finetune", data=[(Picture(), 0)] * 3),
        ("'finetune', example 0", "item 0 is a Picture", "give collate="),
        DataError,
    ),
    Bad(
        "ragged lists",
        at("finetune", data=[([1.0] * n, 0) for n in (4, 5, 4)]),
        ("'finetune', example 0", "item 0 is a list of 4 numbers", "torch.tensor(...)", "collate="),
        DataError,
    ),
    # losses
    Bad(
        "a reduced loss",
        at("pretrain", objective=reduced),
        ("'pretrain'", "reduced to one number for", "reduction='none'"),
        DataError,
    ),
    Bad(
        "a reduced query loss",
        at("query", objective=reduced),
        ("the query", "reduced to one number", "reduction='none'"),
        DataError,
    ),
    Bad(
        "a loss per logit",
        at("pretrain", objective=per_logit),
        ("'pretrain'", "3] for a batch of", "it must be ["),
        DataError,
    ),
    Bad(
        "a number for a loss",
        at("pretrain", objective=number),
        ("'pretrain'", "one loss per example", "float"),
        DataError,
    ),
    Bad(
        "a loss relative to the batch",
        at("finetune", objective=relative),
        ("'finetune'", "example ", "what else is in its batch", "must depend on the example alone"),
        DataError,
    ),
    Bad(
        "a NaN loss",
        at("pretrain", data=spoilt(40, 3, float("nan"))),
        ("'pretrain'", "example 3 is nan", NEITHER_NAN),
        DataError,
    ),
    Bad(
        "an infinite loss",
        at("finetune", objective=as_it_is, data=spoilt(40, 30, float("inf"))),
        ("'finetune'", "example 30 is inf", NEITHER_NAN),
        DataError,
    ),
    Bad(
        "a NaN loss of a query",
        at("query", data=spoilt(40, 3, float("nan"))),
        ("the query", "example 3 is nan", NEITHER_NAN),
        DataError,
    ),
    # settings
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
        ("curvature of stage 'finetune'", "'auto', 'hessian', 'gauss-newton', 'identity'", "'Gauss'"),
    ),
    Bad(
        "a curvature's word for a solver",
        at("settings", solver="hessian"),
        ("solver of stage 'pretrain'", "'lanczos'", "'hessian'"),
    ),
    # objectives that are none
    Bad(
        "a loss of PyTorch's",
        at("pretrain", objective=nn.functional.cross_entropy),
        ("'pretrain'", "cross_entropy", "use Classification()", "losses(model, batch)"),
    ),
    Bad(
        "a loss of PyTorch's, wrapped",
        at("finetune", objective=partial(nn.functional.binary_cross_entropy_with_logits, reduction="none")),
        ("'finetune'", "binary_cross_entropy_with_logits(model(batch[0]), batch[1], reduction='none')"),
    ),
    Bad(
        "the forward of a loss module",
        at("finetune", objective=nn.BCEWithLogitsLoss().forward),
        ("'finetune'", "BCEWithLogitsLoss", "BinaryClassification()", "MultiLabel()"),
    ),
    Bad(
        "a weighted loss module",
        at("pretrain", objective=nn.CrossEntropyLoss(weight=torch.ones(3))),
        ("'pretrain'", "CrossEntropyLoss (with weight)", "use stagetrace.objectives, or a function"),
    ),
    Bad(
        "a loss of outputs and labels",
        at("query", objective=lambda logits, targets: nn.functional.cross_entropy(logits, targets, reduction="none")),
        ("the query", "(logits, targets)", "losses(model, batch)", "calls the model itself"),
    ),
    Bad("a loss of a batch", at("pretrain", objective=lambda batch: batch[0]), ("'pretrain'", "(batch)", "two arg")),
    Bad(
        "an objective of outputs and labels",
        at("pretrain", objective=OfLabels()),
        ("'pretrain'", "losses(outputs, labels)", "the whole batch"),
    ),
    Bad(
        "a loss of other names",
        at("pretrain", objective=lambda a, b: nn.functional.cross_entropy(a, b, reduction="none")),
        ("'pretrain', examples 0 to 1", "TypeError", "called as losses(model, batch)", "float64 [2, 4], int64 [2]"),
        DataError,
    ),
    Bad(
        "a loss and more",
        at("pretrain", objective=lambda model, batch: (sound(model, batch), model(batch[0]))),
        ("'pretrain'", "got a tuple (float64 [", "return the losses alone"),
        DataError,
    ),
    Bad(
        "how often the model is right",
        at("pretrain", objective=lambda model, batch: model(batch[0]).argmax(dim=1) == batch[1]),
        ("'pretrain'", "the losses are bool", "return the loss that was trained"),
        DataError,
    ),
    # data that is none
    Bad("nothing for data", at("pretrain", data=None), ("'pretrain'", "data is None", "list of examples")),
    Bad("a lone query example", at("query", data=examples(40, 2)[3]), ("the query", "[(x, y)]", "TensorDataset(x, y)")),
    Bad(
        "a lone example in a list",
        at("query", data=[*examples(40, 2)[3]]),
        ("the query", "read as 2 examples", "[(x, y)]"),
    ),
    Bad(
        "tensors of all examples",
        at("pretrain", data=examples(40, 1).tensors),
        ("'pretrain'", "float64 [40, 4], int64 [40]", "TensorDataset(x, y)"),
    ),
    Bad("a query of a query", at("query", data=Query(examples(40, 2))), ("the query", "data is a Query", "data set")),
    Bad("a model for data", at("pretrain", data=Net(0)), ("'pretrain'", "data is the module Net", "data set")),
    Bad("a class for data", at("pretrain", data=Noisy), ("'pretrain'", "data is the class Noisy", "instance")),
    Bad(
        "sparse rows",
        at("pretrain", data=TensorDataset(torch.eye(4).to_sparse(), torch.zeros(4))),
        ("'pretrain'", "sparse", "to_dense()"),
    ),
    # batches that do not fit
    Bad(
        "no labels",
        at("query", data=TensorDataset(examples(40, 2).tensors[0])),
        ("the query, examples 0 to 1", "its labels are missing", "(input, label)"),
        DataError,
    ),
    Bad(
        "no labels by name",
        at("query", data=[{"x": x} for x, _ in examples(40, 2)]),
        ("the query, examples 0 to 1", "keys are ['x']", "rename"),
        DataError,
    ),
    Bad(
        "labels by two names",
        at("query", data=[{"x": x, "label": y, "target": 1 - y} for x, y in examples(40, 2)]),
        ("the query, examples 0 to 1", "'label' and 'target'", "keep one"),
        DataError,
    ),
    Bad(
        "names that forward does not have",
        at("pretrain", data=[{"features": x, "mask": x, "label": y} for x, y in examples(40, 1)]),
        ("'pretrain', examples 0 to 1", "Net.forward takes (x)", "inputs are 'features', 'mask'", "rename"),
        DataError,
    ),
    Bad(
        "an input that forward would never see",
        at("pretrain", data=[{"x": x, "weight": x[0], "label": y} for x, y in examples(40, 1)]),
        ("'pretrain', examples 0 to 1", "'weight'", "takes (x)", "leave it out"),
        DataError,
    ),
    Bad(
        "one input too many",
        at("finetune", data=[(x, x, y) for x, y in examples(40, 1)]),
        ("'finetune', examples 0 to 1", "2 inputs", "Net.forward takes (x)", "collate="),
        DataError,
    ),
    Bad(
        "Gauss-Newton of a plain loss",
        at("finetune", objective=sound),
        ("'finetune'", "GaussNewton", "outputs(model, batch)", "use Hessian()"),
    ),
    Bad(
        "Gauss-Newton of a plain loss, before",
        at("pretrain", objective=sound),
        ("'pretrain'", "GaussNewton", "outputs(model, batch)", "use Hessian()"),
    ),
]


@pytest.mark.parametrize("bad", TABLE, ids=lambda bad: bad.what)
def test_bad_input_is_refused_in_one_line_and_nothing_is_written(bad: Bad, tmp_path: Path):
    described, out = Described(), tmp_path / "out"
    with pytest.raises(bad.error) as caught:
        described.broken(bad.broken).trace(out)
    message = str(caught.value)
    assert "\n" not in message
    assert [word for word in bad.words if word not in message] == [], message
    assert not out.exists()


def test_the_chain_that_is_broken_above_is_sound(tmp_path: Path):
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


@pytest.mark.parametrize(
    ("stages", "says"),
    [
        (lambda one: ([one],), r"argument 1 of Chain is list; write Chain\(\*stages\)"),
        (lambda one: (one, Stage), r"argument 2 of Chain is the class Stage; write Chain\(pretrain, finetune\)"),
        (lambda one: (one.model,), "argument 1 of Chain is Net"),
    ],
    ids=["list", "class", "model"],
)
def test_a_chain_is_made_of_stages(stages: Callable[[Stage], Any], says: str):
    with pytest.raises(DescriptionError, match=says):
        Chain(*stages(Stage("pretrain", **Described().pretrain)))


def test_names_stand_for_what_the_command_line_takes():
    described = Described()
    described.settings = {"curvature": GaussNewton(), "solver": Lanczos()}
    expected = described.trace()
    described.settings = {"curvature": "gauss-newton", "solver": {"pretrain": "lanczos", "finetune": Lanczos()}}
    found = described.trace()
    for name in described.names:
        assert torch.equal(found[name].values, expected[name].values)
    assert found.description["curvature"] == expected.description["curvature"]


@pytest.mark.parametrize("data", [((1.0, 2.0), (3.0, 4.0)), [torch.zeros(3), torch.ones(3)], [1.0, 2.0]], ids=repr)
def test_a_few_examples_are_no_lone_example(data: Any):
    assert Query(data).data is data


def test_scores_of_an_unknown_stage():
    with pytest.raises(KeyError, match=r"'nope'.*type one of: 'pretrain', 'finetune'") as caught:
        Described().trace()["nope"]
    assert isinstance(caught.value, DescriptionError)


def test_alpha_of_a_stage_that_does_not_pull_back(tmp_path: Path):
    """Downhill of its start, a stage that stopped early was held back; uphill, it was not."""
    described = Described()
    start = described.pretrain["model"]
    model = deepcopy(start)
    nn.functional.cross_entropy(model(examples(40, 1).tensors[0]), examples(40, 1).tensors[1]).backward()
    with torch.no_grad():
        for p in model.parameters():
            p.sub_(p.grad, alpha=1e-2)
    link = Proximal({"embedding": "embedding"}, alpha="auto")
    described.finetune |= {"model": model, "link": link}
    described.trace()
    with torch.no_grad():
        for p, q in zip(model.parameters(), start.parameters(), strict=True):
            p.copy_(2 * q - p)
    with pytest.raises(DescriptionError, match=r"'finetune'.*alpha='auto' estimates -.*give a number, alpha=0.01"):
        described.trace(tmp_path / "out")
    assert not (tmp_path / "out").exists()


# Deep in the data, where only the run itself looks


def root(model: nn.Module, batch: Any) -> Tensor:
    """A loss with a finite value and an infinite slope at the origin."""
    return torch.sqrt(model(batch[0]).sum(dim=1).square() * batch[0][:, 0].square())


DEEP = 777
STAGES = ("pretrain", "finetune", "query")


@pytest.mark.parametrize("where", STAGES)
@pytest.mark.parametrize(
    ("spoilt_by", "words"),
    [(float("nan"), "the loss of example 777 is nan"), (float("inf"), "the loss of example 777")],
)
@pytest.mark.parametrize("curvature", [Hessian(), Hessian(examples=50), Identity()], ids=repr)
def test_a_bad_example_deep_in_the_data_is_named(
    where: str, spoilt_by: float, words: str, curvature: Hessian | Identity, tmp_path: Path
):
    """Nothing of the stage it belongs to is kept but, where the curvature did not see it, the solution."""
    described, out = Described(), tmp_path / "out"
    getattr(described, where).update(data=spoilt(1000, DEEP, spoilt_by), batch_size=64)
    described.settings = {"curvature": curvature, "solver": Lanczos(damping=0.01)}
    whose = "the query" if where == "query" else f"stage '{where}'"
    with pytest.raises(DataError, match=f"^{whose}: {words}.*{NEITHER_NAN}.*$"):
        described.trace(out)
    kept = sorted(str(path.relative_to(out)) for path in out.rglob("*.*"))
    if where == "query" or (where == "finetune" and curvature == Hessian()):
        assert not out.exists()
    elif where == "finetune":
        assert kept == ["adjoints/finetune.safetensors", "run.json"]
    else:
        assert not (out / "scores" / "pretrain").exists()
    if out.exists():
        with pytest.raises(ResultsError, match="not finished"):
            Trace.load(out)


def test_the_folder_of_a_run_refused_before_anything_was_kept_takes_it_once_it_is_put_right(tmp_path: Path):
    described, out = Described(), tmp_path / "out"
    described.finetune |= {"data": spoilt(100, 50, float("nan"))}
    with pytest.raises(DataError, match="example 50"):
        described.trace(out)
    described.finetune |= {"data": examples(100, 1)}
    assert list(described.trace(out)) == ["pretrain", "finetune"]


@pytest.mark.parametrize("curvature", [Hessian(), Identity()], ids=repr)
def test_a_loss_without_a_slope_names_example_and_parameter(curvature: Hessian | Identity):
    described = Described()
    data = examples(100, 1)
    data.tensors[0][50] = 0
    described.finetune |= {"objective": root, "data": data}
    described.settings = {"curvature": curvature}
    with pytest.raises(DataError, match=r"^stage 'finetune': the .*example 50.*$"):
        described.trace()


# A model in training mode


class Wavering(nn.Module):
    """A network that behaves otherwise in training mode."""

    def __init__(self, wavers: nn.Module) -> None:
        super().__init__()
        self.embedding, self.wavers, self.head = nn.Linear(4, 3), wavers, nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.wavers(torch.tanh(self.embedding(x))))


@pytest.mark.parametrize("wavers", [nn.Dropout(0.5), nn.BatchNorm1d(3)], ids=lambda layer: type(layer).__name__)
def test_a_model_in_training_mode_is_evaluated_in_eval_mode_and_left_as_it_was(wavers: nn.Module):
    torch.manual_seed(0)
    model = Wavering(wavers).double()
    model(torch.randn(50, 4, dtype=torch.float64))  # running statistics that are not the starting ones
    described = Described()
    described.pretrain["model"], described.finetune["model"] = model, deepcopy(model)
    before = deepcopy(model.state_dict())
    with pytest.warns(StagetraceWarning, match=f"training mode and has {type(wavers).__name__}.*eval mode") as said:
        in_training = described.trace()
    assert [name for name in ("pretrain", "finetune") if any(f"'{name}'" in str(w.message) for w in said)] == [
        "pretrain",
        "finetune",
    ]
    assert all(module.training for module in model.modules())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    described.pretrain["model"].eval()
    described.finetune["model"].eval()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        in_eval = described.trace()
    for name in in_eval:
        torch.testing.assert_close(in_training[name].values, in_eval[name].values, rtol=0, atol=0)


# A folder that is not this run's


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


OTHERS = [
    ("weights", model_of("pretrain", lambda m: m.get_parameter("head.bias").data.add_(1)), ["pretrain.model.sha256"]),
    ("data", at("finetune", data=examples(40, 3)), ["stages.finetune.data.sha256"]),
    ("fewer data", at("pretrain", data=examples(39, 1)), ["stages.pretrain.data.examples", "40 -> 39"]),
    ("query", at("query", data=examples(40, 3)), ["query.data.sha256"]),
    ("reduction", at("query", reduction="sum"), ["query.reduction", "'mean' -> 'sum'"]),
    ("weight decay", at("finetune", weight_decay=0.5), ["stages.finetune.weight_decay", "0.0 -> 0.5"]),
    ("objective", both(at("finetune", objective=sound), at("settings", curvature=Hessian())), ["finetune.objective"]),
    ("curvature", at("settings", curvature=GaussNewton(examples=7)), ["curvature.pretrain.examples", "-> 7"]),
    ("solver", at("settings", solver=Lanczos(damping=0.5)), ["solver.pretrain.damping", "-> 0.5"]),
    ("scored stages", at("settings", of="finetune"), ["of"]),
    ("parts", at("settings", parts=True), ["parts", "-> true"]),
    ("names", named("pretrain", "tune"), ["tune"]),
]  # fmt: skip


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finished") / "run"
    Described().trace(folder)
    return folder


@pytest.mark.parametrize(("change", "differs"), [case[1:] for case in OTHERS], ids=[case[0] for case in OTHERS])
def test_the_folder_of_another_run_is_refused_by_what_differs(
    change: Callable[[Described], None], differs: list[str], finished: Path
):
    before, described = contents(finished), Described()
    change(described)
    with pytest.raises(ResultsError, match=r"holds another run.*there -> here") as caught:
        described.trace(finished)
    message = str(caught.value).replace('"', "'")
    assert [words for words in differs if words not in message] == [], message
    assert "choose another folder" in message
    assert contents(finished) == before


def test_a_folder_of_other_files_is_refused_and_left_alone(tmp_path: Path):
    (tmp_path / "thesis.tex").write_text("years of work")
    before = contents(tmp_path)
    with pytest.raises(ResultsError, match=r"not a stagetrace run folder.*choose an empty or new folder"):
        Described().trace(tmp_path)
    assert contents(tmp_path) == before

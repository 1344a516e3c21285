"""The chains that scores are tested on: a declarative record each, for the oracle to solve and the library to trace.

`CASES` is the table. A record says how the models are made, what the data are, and how a stage started from the one
before it; `oracles.solved` finds the parameters, and `build` turns record and parameters into a `Chain` and a `Query`.
"""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, field
from functools import cache, lru_cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from examples.elastic import Elastic
from stagetrace import Chain, Frozen, Link, Proximal, Query, Stage
from stagetrace.objectives import Classification, Regression
from stagetrace.stages.links import Computed

Points = tuple[dict[str, Tensor], ...]
"""The solved parameters of each stage, by name."""

OBJECTIVES = {"squared": Regression(), "cross-entropy": Classification()}

# Records


Merge = tuple[tuple[str, ...], Callable[..., Tensor]]
"""Parameters of the previous stage, and the function of them that one of this stage started from."""


@dataclass(frozen=True)
class LinkCase:
    """A link: `kind` is a row of `LINKS`; `shared` maps names or prefixes to the previous stage's, or to a `Merge`."""

    kind: str
    shared: dict[str, Any]
    alpha: float = 0.0

    @property
    def given(self) -> dict[str, Any]:
        """What is shared, as the library is told."""
        return {name: Computed(*there) if isinstance(there, tuple) else there for name, there in self.shared.items()}

    @property
    def keeps(self) -> bool:
        return LINKS[self.kind].metric is None

    @property
    def in_loss(self) -> bool:
        return LINKS[self.kind].in_loss

    def strengths(self, shape: torch.Size) -> Tensor:
        """`a` in the penalty `sum_j a_j (W_j - W'_j)^2` of a shared parameter that the stage moves."""
        metric = LINKS[self.kind].metric
        assert metric is not None
        return self.alpha * metric(shape)


@dataclass(frozen=True)
class LinkKind:
    """How the library describes a link, and how strongly it pulls: all that the tests ask of one.

    link: makes it of its record and of its strengths by parameter.
    metric: a parameter's shape -> the strengths of its entries at `alpha = 1`; None if all that is shared is kept.
    in_loss: whether the pull is in the loss of a training by steps.
    """

    link: Callable[[LinkCase, dict[str, Tensor]], Link]
    metric: Callable[[torch.Size], Tensor] | None
    in_loss: bool


def alike(shape: torch.Size) -> Tensor:
    return torch.ones(shape, dtype=torch.float64)


def rising(shape: torch.Size) -> Tensor:
    """From no pull on the first entry to twice the mean on the last one."""
    return torch.linspace(0, 2, shape.numel(), dtype=torch.float64).reshape(shape)


LINKS = {
    "frozen": LinkKind(lambda case, strengths: Frozen(case.given), None, in_loss=False),
    "proximal": LinkKind(lambda case, strengths: Proximal(case.given, alpha=case.alpha), alike, in_loss=False),
    "elastic": LinkKind(lambda case, strengths: Elastic(case.given, strengths), rising, in_loss=True),
}
"""The table of links: every chain below that is made by `by_each_link` is made with each of them."""


@dataclass(frozen=True, eq=False)
class StageCase:
    """A stage: `make()` gives the module with its starting values, always the same; `constant` are prefixes.

    `loss` is "squared" (the mean over the outputs) or "cross-entropy".
    """

    name: str
    make: Callable[[], Any]
    x: Tensor
    y: Tensor
    loss: str
    weight_decay: float = 0.0
    link: LinkCase | None = None
    constant: tuple[str, ...] = ()
    batch_size: int = 5

    @lru_cache  # noqa: B019 - a handful of records, alive as long as the tests
    def model(self) -> Any:
        """The module, with `requires_grad` as the record says."""
        model = self.make()
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(not any(name == p or name.startswith(p + ".") for p in self.constant))
        return model

    @lru_cache  # noqa: B019
    def initial(self) -> dict[str, Tensor]:
        """The starting values of all parameters; a tied one under its first name."""
        return {name: parameter.detach().clone() for name, parameter in self.model().named_parameters()}

    @cache  # noqa: B019
    def trains(self, name: str) -> bool:
        return dict(self.model().named_parameters())[name].requires_grad


@dataclass(frozen=True, eq=False)
class ChainCase:
    """A chain and its query. `tolerance` is what a score may miss the re-solved truth by, relatively."""

    name: str
    stages: tuple[StageCase, ...]
    query_x: Tensor
    query_y: Tensor
    tolerance: float = field(default=1e-5)

    @property
    def links(self) -> list[LinkCase]:
        return [stage.link for stage in self.stages[1:] if stage.link is not None]


# Models, float64


def drawn(model: nn.Module, seed: int, scale: float = 0.5) -> nn.Module:
    """The model in float64 with its parameters drawn anew."""
    generator = torch.Generator().manual_seed(seed)
    model.double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(scale * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return model


def attach(model: nn.Module, name: str, layer: nn.Module) -> None:
    """Hang a layer into the model under a dotted name."""
    *parents, leaf = name.split(".")
    for parent in parents:
        if parent not in dict(model.named_children()):
            model.add_module(parent, nn.Module())
        model = model.get_submodule(parent)
    model.add_module(leaf, layer)


class Additive(nn.Module):
    """`x -> sum_l layer_l(x[:, first_l:last_l])`: outputs linear in all parameters, so convex losses stay convex.

    Only the last layer has a bias, if any.
    """

    def __init__(self, outputs: int, columns: dict[str, tuple[int, int]], bias: bool = True) -> None:
        super().__init__()
        self.columns, self.width, self.outputs = columns, max(last for _, last in columns.values()), outputs
        for name, (first, last) in columns.items():
            attach(self, name, nn.Linear(last - first, outputs, bias=bias and name == list(columns)[-1]))

    def forward(self, x: Tensor) -> Tensor:
        terms = [self.get_submodule(name)(x[:, slice(*ends)]) for name, ends in self.columns.items()]
        return torch.stack(terms).sum(dim=0)


class Stack(nn.Module):
    """Linear layers with a tanh between each two; `tied` gives a layer the very weight of another."""

    def __init__(self, layers: dict[str, tuple[int, int]], tied: dict[str, str] | None = None) -> None:
        super().__init__()
        self.order = list(layers)
        self.width, self.outputs = layers[self.order[0]][0], layers[self.order[-1]][1]
        for name, (inputs, outputs) in layers.items():
            attach(self, name, nn.Linear(inputs, outputs))
        for name, other in (tied or {}).items():
            self.get_submodule(name).weight = self.get_submodule(other).weight

    def forward(self, x: Tensor) -> Tensor:
        for name in self.order[:-1]:
            x = torch.tanh(self.get_submodule(name)(x))
        return self.get_submodule(self.order[-1])(x)


class Adapted(nn.Module):
    """Two layers with a tanh between them; beside the first one's weight an update of rank 1, `1.5 up down`."""

    def __init__(self, inputs: int, inner: int, outputs: int) -> None:
        super().__init__()
        self.width, self.outputs = inputs, outputs
        self.base, self.head = nn.Linear(inputs, inner), nn.Linear(inner, outputs)
        self.down, self.up = nn.Parameter(torch.empty(1, inputs)), nn.Parameter(torch.empty(inner, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.base(x) + 1.5 * (x @ self.down.T) @ self.up.T))


# Data, float64


def inputs(n: int, columns: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(1000 + seed)
    return torch.randn(n, columns, generator=generator, dtype=torch.float64)


def targets(x: Tensor, outputs: int, seed: int) -> Tensor:
    """A noisy and not quite linear function of the inputs, `[n, outputs]`."""
    generator = torch.Generator().manual_seed(2000 + seed)
    teacher = torch.randn(x.shape[1], outputs, generator=generator, dtype=torch.float64)
    noise = torch.randn(len(x), outputs, generator=generator, dtype=torch.float64)
    return torch.sin(x @ teacher) + 0.5 * x @ teacher + 0.5 * noise


def stage(
    name: str,
    model: Additive | Stack | Adapted,
    loss: str,
    *,
    n: int,
    seed: int,
    weight_decay: float = 0.0,
    link: LinkCase | None = None,
    constant: tuple[str, ...] = (),
    batch_size: int = 5,
) -> StageCase:
    """A stage on drawn data; the labels of a classification are the largest of the drawn targets."""
    x = inputs(n, model.width, seed)
    y = targets(x, model.outputs, seed)
    y = y if loss == "squared" else y.argmax(dim=1)
    return StageCase(name, lambda: drawn(deepcopy(model), seed), x, y, loss, weight_decay, link, constant, batch_size)


def chain(name: str, *stages: StageCase, tolerance: float = 1e-5, queries: int = 7) -> ChainCase:
    """The chain, with a query drawn like the last stage's data."""
    last = stages[-1]
    x = inputs(queries, last.model().width, 77)
    y = targets(x, last.model().outputs, 77)
    return ChainCase(name, stages, x, y if last.loss == "squared" else y.argmax(dim=1), tolerance)


# The table


def frozen(*names: str, **renamed: str) -> LinkCase:
    return LinkCase("frozen", {name: name for name in names} | renamed)


def proximal(alpha: float, *names: str, **renamed: str) -> LinkCase:
    return LinkCase("proximal", {name: name for name in names} | renamed, alpha)


UNTIED = {"embedding": "embedding", "again.weight": "embedding.weight"}
TWO = {"embedding": (0, 3), "head": (3, 5)}
THREE = {"embedding": (0, 3), "middle": (3, 5), "head": (5, 7)}


def ridge(name: str, link: LinkCase, decays: tuple[float, float] = (0.1, 0.0)) -> ChainCase:
    """Two ridge regressions with two outputs, without biases."""
    return chain(
        name,
        stage("pretrain", Additive(2, TWO, bias=False), "squared", n=23, seed=1, weight_decay=decays[0]),
        stage("finetune", Additive(2, TWO, bias=False), "squared", n=19, seed=2, weight_decay=decays[1], link=link),
    )


def logistic(name: str, link: LinkCase) -> ChainCase:
    """Two softmax regressions with three classes; the two stages' batches do not fit their data."""
    return chain(
        name,
        stage("pretrain", Additive(3, TWO), "cross-entropy", n=23, seed=3, weight_decay=0.05),
        stage("finetune", Additive(3, TWO), "cross-entropy", n=19, seed=4, weight_decay=0.02, link=link, batch_size=7),
    )


def three(name: str, second: LinkCase, third: LinkCase) -> ChainCase:
    """Ridge, then softmax, then softmax, of three outputs; the second stage adds a layer "middle" of its own."""
    return chain(
        name,
        stage("first", Additive(3, TWO), "squared", n=23, seed=5, weight_decay=0.05),
        stage(
            "second", Additive(3, THREE), "cross-entropy", n=19, seed=6, weight_decay=0.05, link=second, batch_size=7
        ),
        stage("third", Additive(3, THREE), "cross-entropy", n=17, seed=7, weight_decay=0.1, link=third, batch_size=64),
    )


def renamed(name: str, link: LinkCase) -> ChainCase:
    """The embedding is called `encoder.features` in the first model."""
    first = Additive(2, {"encoder.features": (0, 3), "encoder.out": (3, 5)})
    return chain(
        name,
        stage("pretrain", first, "squared", n=23, seed=8, weight_decay=0.1),
        stage("finetune", Additive(2, TWO), "squared", n=19, seed=9, link=link),
    )


def partly_constant(name: str, link: LinkCase, constant: tuple[str, ...], before: tuple[str, ...] = ()) -> ChainCase:
    """Three layers in both stages, of which some never train: `constant` in the second stage, `before` in the first."""
    return chain(
        name,
        stage("pretrain", Additive(3, THREE), "squared", n=23, seed=10, weight_decay=0.1, constant=before),
        stage(
            "finetune",
            Additive(3, THREE),
            "cross-entropy",
            n=19,
            seed=11,
            weight_decay=0.05,
            link=link,
            constant=constant,
        ),
    )


def tanh(name: str, link: LinkCase, constant: tuple[str, ...] = ()) -> ChainCase:
    """Two small tanh networks at strict local minima."""
    layers = {"embedding": (4, 3), "head": (3, 2)}
    return chain(
        name,
        stage("pretrain", Stack(layers), "cross-entropy", n=23, seed=12, weight_decay=0.03),
        stage("finetune", Stack(layers), "squared", n=19, seed=13, weight_decay=0.05, link=link, constant=constant),
        tolerance=1e-4,
    )


def tanh_three(name: str, second: LinkCase, third: LinkCase) -> ChainCase:
    """Three tanh networks; the second puts an adapter between embedding and head."""
    short, long = {"embedding": (4, 3), "head": (3, 2)}, {"embedding": (4, 3), "adapter": (3, 3), "head": (3, 2)}
    return chain(
        name,
        stage("first", Stack(short), "squared", n=23, seed=14, weight_decay=0.03),
        stage("second", Stack(long), "squared", n=19, seed=15, weight_decay=0.04, link=second),
        stage("third", Stack(long), "cross-entropy", n=17, seed=16, weight_decay=0.03, link=third),
        tolerance=1e-4,
    )


def tied(name: str, link: LinkCase, still: bool = True) -> ChainCase:
    """Tanh networks whose second layer has the very weight of the first; unless `still`, untied in the second stage."""
    layers, same = {"embedding": (3, 3), "again": (3, 3), "head": (3, 2)}, {"again": "embedding"}
    return chain(
        name,
        stage("pretrain", Stack(layers, same), "squared", n=23, seed=17, weight_decay=0.05),
        stage(
            "finetune", Stack(layers, same if still else None), "squared", n=19, seed=18, weight_decay=0.06, link=link
        ),
        tolerance=1e-4,
    )


def merged(name: str, kind: str, alpha: float = 0.0, constant: tuple[str, ...] = ()) -> ChainCase:
    """A network, a low-rank update of its first layer, and a network that began at both added up."""
    layers = {"embedding": (4, 3), "head": (3, 2)}
    weight: Merge = (("base.weight", "down", "up"), lambda weight, down, up: weight + 1.5 * up @ down)
    link = LinkCase(kind, {"embedding.weight": weight, "embedding.bias": "base.bias"}, alpha)
    before = frozen("head", base="embedding")
    return chain(
        name,
        stage("first", Stack(layers), "squared", n=6, seed=19, weight_decay=0.03),
        stage("second", Adapted(4, 3, 2), "squared", n=5, seed=20, weight_decay=0.02, link=before),
        stage("third", Stack(layers), "squared", n=5, seed=21, weight_decay=0.03, link=link, constant=constant),
        tolerance=1e-4,
        queries=2,
    )


def by_each_link(kind: str) -> tuple[ChainCase, ...]:
    """A softmax chain, a tanh chain and one of three stages, by the same link."""
    name, alpha = (kind, 0.0) if LINKS[kind].metric is None else (f"{kind} 0.5", 0.5)
    link = LinkCase(kind, {"embedding": "embedding"}, alpha)
    return (
        logistic(f"logistic, {name}", link),
        tanh(f"tanh, {name}", link),
        three(f"three, {kind} then frozen", link, frozen("embedding", "middle")),
    )


FROZEN_RIDGE = ridge("ridge, frozen", frozen("embedding"))
WEAK_RIDGE = ridge("ridge, proximal 0.01", proximal(0.01, "embedding"))
STRONG_RIDGE = ridge("ridge, proximal 0.5", proximal(0.5, "embedding"), decays=(0.0, 0.2))
WEAK_LOGISTIC = logistic("logistic, proximal 0.01", proximal(0.01, "embedding"))
BY_EACH_LINK = {kind: by_each_link(kind) for kind in LINKS}
FROZEN_LOGISTIC, FROZEN_TANH, THREE_FROZEN = BY_EACH_LINK["frozen"]
STRONG_LOGISTIC, STRONG_TANH, _ = BY_EACH_LINK["proximal"]
RIDGES = (FROZEN_RIDGE, WEAK_RIDGE, STRONG_RIDGE)

CASES = (
    *RIDGES,
    *(case for cases in BY_EACH_LINK.values() for case in cases),
    WEAK_LOGISTIC,
    three("three, frozen then frozen, middle only", frozen("embedding"), frozen("middle")),
    three("three, frozen then proximal", frozen("embedding"), proximal(0.01, "embedding", "middle")),
    three("three, proximal then proximal", proximal(0.5, "embedding"), proximal(0.1, "embedding")),
    logistic("logistic, all shared, proximal 0.5", proximal(0.5, "embedding", "head")),
    renamed("renamed by prefix, frozen", frozen(embedding="encoder.features")),
    renamed(
        "renamed in full, proximal 0.5", LinkCase("proximal", {"embedding.weight": "encoder.features.weight"}, 0.5)
    ),
    partly_constant("constant middle, frozen", frozen("embedding"), ("middle",)),
    partly_constant("frozen and not trainable", frozen("embedding"), ("embedding",)),
    partly_constant("kept within proximal 0.5", proximal(0.5, "embedding", "middle"), ("middle",)),
    partly_constant("constant before, frozen", frozen("embedding", "middle"), (), ("middle",)),
    partly_constant("constant before, proximal 0.5", proximal(0.5, "embedding", "middle"), (), ("middle",)),
    tanh("tanh, kept within proximal 0.5", proximal(0.5, "embedding", "head"), ("embedding",)),
    tanh_three("tanh three, frozen then frozen", frozen("embedding"), frozen("embedding", "adapter")),
    tanh_three("tanh three, frozen then proximal", frozen("embedding"), proximal(0.1, "embedding", "adapter")),
    tanh_three("tanh three, proximal then frozen", proximal(0.5, "embedding"), frozen("embedding", "adapter")),
    tied("tied, frozen", frozen("embedding")),
    tied("tied, proximal 0.5", proximal(0.5, "embedding")),
    tied("untied, frozen", LinkCase("frozen", UNTIED), still=False),
    tied("untied, proximal 0.5", LinkCase("proximal", UNTIED, 0.5), still=False),
)

MERGED = (
    merged("merged, frozen", "frozen"),
    merged("merged, proximal 0.3", "proximal", 0.3),
    merged("merged, elastic 0.3", "elastic", 0.3),
    merged("merged, kept within proximal 0.3", "proximal", 0.3, constant=("embedding.weight",)),
)
"""Chains whose last stage started from a function of parameters of the one before."""


REPRESENTATIVES = {
    "ridge, frozen",
    "logistic, frozen",
    "three, frozen then frozen, middle only",
    "three, frozen then proximal",
    "kept within proximal 0.5",
    "renamed in full, proximal 0.5",
    "untied, proximal 0.5",
    "tanh, frozen",
    "tanh, elastic 0.5",
}
"""One of each kind; tests of what was proved for all cases elsewhere take these, and the others where time is given."""


def _marks(case: ChainCase) -> tuple[pytest.MarkDecorator, ...]:
    return () if case.name in REPRESENTATIVES or case not in CASES else (pytest.mark.slow,)


def each_case() -> pytest.MarkDecorator:
    """Every case as `case`; those that are no representatives are slow."""
    return pytest.mark.parametrize("case", [pytest.param(case, id=case.name, marks=_marks(case)) for case in CASES])


def each_place(*more: ChainCase) -> pytest.MarkDecorator:
    """Every stage of every case, and of more cases, as `case` and `position`."""
    places = [(case, position) for case in (*CASES, *more) for position in range(len(case.stages))]
    params = [pytest.param(case, at, id=f"{case.name}-{at}", marks=_marks(case)) for case, at in places]
    return pytest.mark.parametrize(("case", "position"), params)


# From a record to the library's objects


def solved_model(case: StageCase, point: dict[str, Tensor]) -> nn.Module:
    """A fresh module with the given parameters, `requires_grad` as the record says."""
    model = case.make()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(point[name]).requires_grad_(case.trains(name))
    return model


def link_of(case: StageCase) -> Link | None:
    """The library's link, told the strength of each parameter that it moves."""
    if case.link is None:
        return None
    prefixes = tuple(f"{name}." for name in case.link.shared)
    shared = {name: p.shape for name, p in case.initial().items() if f"{name}.".startswith(prefixes)}
    moved = {name: shape for name, shape in shared.items() if case.trains(name) and not case.link.keeps}
    return LINKS[case.link.kind].link(case.link, {name: case.link.strengths(shape) for name, shape in moved.items()})


def stage_of(case: StageCase, point: dict[str, Tensor], **changes: Any) -> Stage:
    """The record as a `Stage` with solved parameters; `changes` override arguments of `Stage`."""
    described: dict[str, Any] = {
        "model": solved_model(case, point),
        "objective": OBJECTIVES[case.loss],
        "data": TensorDataset(case.x, case.y),
        "link": link_of(case),
        "weight_decay": case.weight_decay,
        "batch_size": case.batch_size,
    }
    return Stage(case.name, **(described | changes))


def chain_of(case: ChainCase, points: Points, **changes: dict[str, Any]) -> Chain:
    """The record as a `Chain`; `changes` are arguments of `Stage` by the stage's name."""
    return Chain(*(stage_of(s, point, **changes.get(s.name, {})) for s, point in zip(case.stages, points, strict=True)))


def query_of(case: ChainCase, **settings: Any) -> Query:
    return Query(TensorDataset(case.query_x, case.query_y), **settings)

"""Predictions beside the truth: each against its formula written out, in float64 and by explicit loops."""

import math
import re
import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import grad, hessian, jacrev
from torch.utils.data import TensorDataset

from stagetrace import CG, Chain, Direct, Frozen, GaussNewton, Hessian, Identity, Lanczos, Query, Stage, trace
from stagetrace.errors import CurvatureWarning, DataError, DescriptionError
from stagetrace.objectives import Classification, Regression
from stagetrace.stages.fingerprint import fingerprint_model
from stagetrace.validation import removal_effects
from stagetrace.validation.estimators import (
    BM25,
    EmbeddingSimilarity,
    Estimator,
    GradientDot,
    Influence,
    Random,
    SingleStage,
)
from tests import chains
from tests.chains import (
    CASES,
    FROZEN_LOGISTIC,
    FROZEN_RIDGE,
    STRONG_TANH,
    Additive,
    ChainCase,
    chain_of,
    each_place,
    query_of,
)
from tests.oracles import (
    Point,
    flatten,
    losses,
    own_names,
    previous_names,
    query_losses,
    solved,
    unflatten,
)

RENAMED = chains.chain(
    "renamed twice",
    chains.stage("first", Additive(2, {"a": (0, 3), "head": (3, 5)}), "squared", n=13, seed=21, weight_decay=0.1),
    chains.stage(
        "second",
        Additive(2, {"b": (0, 3), "head": (3, 5)}),
        "squared",
        n=12,
        seed=22,
        weight_decay=0.1,
        link=chains.proximal(0.5, b="a"),
    ),
    chains.stage(
        "third", Additive(2, {"c": (0, 3), "head": (3, 5)}), "squared", n=11, seed=23, link=chains.frozen(c="b")
    ),
)
each_reduction = pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
may_be_indefinite = pytest.mark.filterwarnings("ignore::stagetrace.errors.CurvatureWarning")
"""All of a fine-tuned model's parameters together need not be at a minimum of its stage's loss."""


# The shared parameters, by the record of the chain


@cache
def composed(case: ChainCase, position: int) -> dict[str, str]:
    """The last stage's parameters that it has by training or from before, with the stage's names of them."""
    last = case.stages[-1]
    names = {name: name for name in last.initial() if name in own_names(last) or name in previous_names(last)}
    for stage in reversed(case.stages[position + 1 :]):
        names = {name: previous_names(stage)[other] for name, other in names.items() if other in previous_names(stage)}
    return names


@cache
def shared(case: ChainCase, position: int) -> list[tuple[str, str]]:
    """Those of them that the stage trained: pairs of the last stage's name and the stage's."""
    own = own_names(case.stages[position])
    return [(name, other) for name, other in composed(case, position).items() if other in own]


def example_gradients(case: ChainCase, position: int, point: Point) -> list[Point]:
    stage = case.stages[position]
    return [
        grad(lambda point, i=i: losses(stage, point, stage.x[i : i + 1], stage.y[i : i + 1]).sum())(point)
        for i in range(len(stage.x))
    ]


def dots(case: ChainCase, position: int, at_last: list[Point], examples: list[Point]) -> Tensor:
    """`+ 1/n` times the dot product over the shared parameters, one by one, `[q, n]`."""
    rows = [
        [sum(float((here[other] * there[name]).sum()) for name, other in shared(case, position)) for here in examples]
        for there in at_last
    ]
    return torch.tensor(rows, dtype=torch.float64) / len(examples)


def reduced(rows: Tensor, reduction: str) -> Tensor:
    return {"mean": rows.sum(dim=0) / len(rows), "sum": rows.sum(dim=0), "none": rows}[reduction]


@cache
def query_gradients(case: ChainCase) -> list[Point]:
    by_name = jacrev(lambda point: query_losses(case, point))(solved(case)[-1])
    return [{name: rows[q] for name, rows in by_name.items()} for q in range(len(case.query_x))]


# Influence


@each_reduction
@pytest.mark.parametrize("position", [0, 1])
@pytest.mark.parametrize("case", [FROZEN_LOGISTIC, STRONG_TANH], ids=lambda case: case.name)
@pytest.mark.parametrize("settings", [{}, {"curvature": Identity()}, {"curvature": GaussNewton(), "solver": Direct()}])
def test_influence_is_the_removal_effect_of_trace(case, position, reduction, settings):
    chain, query, name = chain_of(case, solved(case)), query_of(case, reduction=reduction), case.stages[position].name
    expected = trace(chain, query, of=[name], **settings)[name].removal_effect
    assert torch.equal(Influence(**settings).removal_effects(chain, query, name), expected)


def test_influence_has_the_sign_of_the_truth():
    chain, query = chain_of(FROZEN_RIDGE, solved(FROZEN_RIDGE)), query_of(FROZEN_RIDGE)
    true = removal_effects(chain, query, "pretrain", range(5), share=0.05) / 0.05
    predicted = Influence(solver=Lanczos(damping=0.0)).removal_effects(chain, query, "pretrain")[:5]
    torch.testing.assert_close(predicted, true, rtol=0.05, atol=1e-6)


# Single stage


def single_stage(case: ChainCase, position: int) -> Tensor:
    """`+ 1/n (d loss_i / dW) . [H^-1 dq/dtheta]_W`, dense, `[q, n]`."""
    last, points = case.stages[-1], solved(case)
    theta = [name for name in last.initial() if name in own_names(last) or name in previous_names(last)]

    def mean_loss(vector: Tensor) -> Tensor:
        point = {**points[-1], **unflatten(vector, points[-1], theta)}
        return losses(last, point, last.x, last.y).mean() + last.weight_decay / 2 * vector.square().sum()

    curvature = hessian(mean_loss)(flatten(points[-1], theta))
    adjoints = [torch.linalg.solve(curvature, flatten(gradient, theta)) for gradient in query_gradients(case)]

    point, names = dict(points[position]), composed(case, position)
    for other in set(names.values()):
        values = [points[-1][name] for name in names if names[name] == other]
        point[other] = sum(values[1:], values[0]) / len(values)
    examples = example_gradients(case, position, point)
    return dots(case, position, [unflatten(adjoint, points[-1], theta) for adjoint in adjoints], examples)


@may_be_indefinite
@each_place(RENAMED)
def test_single_stage_equals_the_dense_formula(case: ChainCase, position: int):
    chain, name = chain_of(case, solved(case)), case.stages[position].name
    estimator = SingleStage(solver=Direct())
    if not shared(case, position):
        with pytest.raises(DescriptionError, match=f"no parameter that stage '{name}' trained.*Influence"):
            estimator.removal_effects(chain, query_of(case), name)
        return
    expected = single_stage(case, position)
    assert expected.abs().max() > 1e-6
    for reduction in ("mean", "sum", "none"):
        found = estimator.removal_effects(chain, query_of(case, reduction=reduction), name)
        torch.testing.assert_close(found, reduced(expected, reduction), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("curvature", [None, GaussNewton(), Identity()])
@pytest.mark.parametrize("case", CASES[:8], ids=lambda case: case.name)
def test_single_stage_of_one_stage_is_ordinary_influence(case, curvature):
    chain = Chain(chain_of(case, solved(case)).stages[0])
    query = Query(TensorDataset(case.stages[0].x[:4] + 0.1, case.stages[0].y[:4]))
    found, expected = (
        estimator(curvature, Lanczos(damping=1e-3)).removal_effects(chain, query, chain.names[0])
        for estimator in (SingleStage, Influence)
    )
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


def test_single_stage_takes_the_last_stages_settings_of_a_mapping():
    case = STRONG_TANH
    chain, query = chain_of(case, solved(case)), query_of(case)
    curvature = {"pretrain": Hessian(), "finetune": GaussNewton()}
    solver = {"pretrain": Direct(damping=3.0), "finetune": Direct(damping=0.1)}
    found = SingleStage(curvature, solver).removal_effects(chain, query, "pretrain")
    expected = SingleStage(GaussNewton(), Direct(damping=0.1)).removal_effects(chain, query, "pretrain")
    assert torch.equal(found, expected)
    other = SingleStage(GaussNewton(), Direct(damping=3.0)).removal_effects(chain, query, "pretrain")
    assert not torch.allclose(found, other)


def test_single_stage_warns_of_an_indefinite_curvature():
    case = next(case for case in CASES if case.name == "tanh, frozen")
    chain = chain_of(case, solved(case))
    with torch.no_grad():  # far from a minimum
        dict(chain.last.stage.model.named_parameters())["head.weight"].add_(5.0)
    with pytest.warns(CurvatureWarning, match="'finetune'"):
        SingleStage(solver=Direct()).removal_effects(chain, query_of(case), "pretrain")


# Gradient dot product


@each_place(RENAMED)
def test_gradient_dot_equals_the_loop(case: ChainCase, position: int):
    chain, name = chain_of(case, solved(case)), case.stages[position].name
    if not shared(case, position):
        with pytest.raises(DescriptionError, match=f"gradient dot product: .*'{name}' trained"):
            GradientDot().removal_effects(chain, query_of(case), name)
        return
    examples = example_gradients(case, position, solved(case)[position])
    expected = dots(case, position, query_gradients(case), examples)
    assert expected.abs().max() > 1e-6
    for reduction in ("mean", "sum", "none"):
        found = GradientDot().removal_effects(chain, query_of(case, reduction=reduction), name)
        torch.testing.assert_close(found, reduced(expected, reduction), rtol=1e-9, atol=1e-12)


def test_gradient_dot_of_one_stage_is_identity_curvature():
    case = STRONG_TANH
    chain = Chain(chain_of(case, solved(case)).stages[0])
    query = Query(TensorDataset(case.stages[0].x[:4] + 0.1, case.stages[0].y[:4]))
    found = GradientDot().removal_effects(chain, query, "pretrain")
    expected = Influence(Identity(), Lanczos(damping=0.0)).removal_effects(chain, query, "pretrain")
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-15)


def test_removing_the_query_itself_is_taken_to_hurt():
    """A query example that is also a training example: the gradients are one, the embeddings are one."""
    case = FROZEN_LOGISTIC
    chain = chain_of(case, solved(case))
    query = Query(TensorDataset(case.stages[1].x[:6], case.stages[1].y[:6]), reduction="none")
    for estimator in (GradientDot(), Influence(GaussNewton()), EmbeddingSimilarity("head")):
        effects = estimator.removal_effects(chain, query, "finetune")
        assert bool((effects[:, :6].diagonal() > 0).all()), estimator.name


# Embedding similarity


def cosines(queries: Tensor, examples: Tensor) -> Tensor:
    rows = [[float(q @ e) / math.sqrt(float(q @ q) * float(e @ e)) for e in examples] for q in queries]
    return torch.tensor(rows, dtype=torch.float64)


@each_reduction
@pytest.mark.parametrize("position", [0, 1])
@pytest.mark.parametrize("case", [FROZEN_RIDGE, FROZEN_LOGISTIC, STRONG_TANH], ids=lambda case: case.name)
def test_embedding_similarity_is_the_cosine_under_the_last_model(case, position, reduction):
    chain, query = chain_of(case, solved(case)), query_of(case, reduction=reduction)
    layer, stage = solved(case)[-1], case.stages[position]
    columns = layer["embedding.weight"].shape[1]

    def oracle(x: Tensor) -> Tensor:
        return x[:, :columns] @ layer["embedding.weight"].T + layer.get("embedding.bias", torch.zeros(1))

    expected = reduced(cosines(oracle(case.query_x), oracle(stage.x)), reduction)

    def embed(model: nn.Module, batch: Any) -> Tensor:
        return model.get_submodule("embedding")(batch[0][:, :columns])

    for given in ("embedding", embed):
        found = EmbeddingSimilarity(given).removal_effects(chain, query, stage.name)
        assert found.dtype is torch.float64
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


class Pooled(nn.Module):
    """Token embeddings, an LSTM and a head; dropout, so that the mode shows."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.tokens = nn.Embedding(11, 4)
        self.recurrent = nn.LSTM(4, 3, batch_first=True)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(3, classes)
        self.spare = nn.Linear(1, 1)

    def forward(self, x: Tensor) -> Tensor:
        try:
            return self.head(self.drop(self.recurrent(self.tokens(x))[0][:, -1]))
        except Exception:
            return torch.zeros(len(x), self.head.out_features)


def texts_chain(lengths: tuple[int, int] = (5, 5)) -> tuple[Chain, Query, Pooled]:
    """Two small text models (the second apart again); labels of the first stage go beyond the second's two classes."""
    torch.manual_seed(3)
    first, second = Pooled(4), Pooled(2)
    second.tokens.load_state_dict(first.tokens.state_dict())
    data = [
        TensorDataset(torch.randint(0, 11, (n, length)), torch.arange(n) % classes)
        for n, length, classes in ((9, lengths[0], 4), (8, lengths[1], 2), (3, lengths[1], 2))
    ]
    chain = Chain(
        Stage("pretrain", model=first, objective=Classification(), data=data[0], batch_size=4),
        Stage("finetune", model=second, objective=Classification(), data=data[1], batch_size=4, link=Frozen("tokens")),
    )
    return chain, Query(data[2], batch_size=2), second


@pytest.mark.parametrize("name", ["tokens", "recurrent", "drop"])
def test_a_submodules_output_is_flattened_and_the_head_never_reached(name: str):
    chain, query, model = texts_chain()
    before, modes = [fingerprint_model(stage.model) for stage in chain.stages], [s.model.training for s in chain.stages]
    found = EmbeddingSimilarity(name).removal_effects(chain, query, "pretrain")

    def oracle(x: Tensor) -> Tensor:
        with torch.no_grad():
            tokens = model.tokens(x)
            outputs = model.recurrent(tokens)[0]
        return {"tokens": tokens, "recurrent": outputs, "drop": outputs[:, -1]}[name].flatten(start_dim=1).double()

    expected = cosines(oracle(query.data.tensors[0]), oracle(chain.stages[0].data.tensors[0])).mean(dim=0)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    assert [fingerprint_model(stage.model) for stage in chain.stages] == before
    assert [stage.model.training for stage in chain.stages] == modes
    assert not any(m._forward_hooks for s in chain.stages for m in (*s.model.modules(), *s.evaluated.modules()))


def test_a_zero_embedding_is_similar_to_none():
    case = FROZEN_RIDGE
    chain = chain_of(case, solved(case))
    found = EmbeddingSimilarity(lambda model, batch: batch[0] * 0).removal_effects(chain, query_of(case), "pretrain")
    assert torch.equal(found, torch.zeros(23, dtype=torch.float64))


@pytest.mark.parametrize(
    ("lengths", "embed", "message"),
    [
        ((5, 5), "nothing", "stage 'finetune' has no submodule 'nothing'; it has 'tokens', 'recurrent'"),
        ((5, 5), "spare", "submodule 'spare' was not called"),
        ((5, 7), "tokens", "stage 'pretrain': the embedding has 20 numbers, the query's 28"),
        ((5, 5), lambda model, batch: batch[1].float(), r"the query: an embedding must be .*\[2, d\], got \[2\]"),
        ((5, 5), lambda model, batch: torch.ones(5, 2), r"must be .*\[2, d\], got \[5, 2\]"),
        ((5, 5), lambda model, batch: "text", "got str"),
        ((5, 5), lambda model, batch: model.missing, "cannot embed examples 0..1 .*AttributeError"),
        ((5, 5), lambda model, batch: torch.full((len(batch[0]), 2), math.nan), "the embedding of example 0 is nan"),
    ],
)
def test_what_is_no_embedding_is_refused(lengths, embed, message):
    chain, query, _ = texts_chain(lengths)
    with pytest.raises((DescriptionError, DataError), match=message):
        EmbeddingSimilarity(embed).removal_effects(chain, query, "pretrain")


# BM25

TEXTS = ["The cat sat.", "the dog, the DOG!", "", "a cat and a dog and a bird", "rain", "rain rain cat"]
QUESTIONS = ["Cat? cat the", "rain in spain", "nothing known", ""]


def bm25_by_hand(documents: list[str], question: str, k1: float, b: float) -> list[float]:
    words = [re.findall("[a-z]+", text.lower()) for text in documents]
    mean_length = sum(map(len, words)) / len(words)
    scores = []
    for document in words:
        score = 0.0
        for word in re.findall("[a-z]+", question.lower()):
            having = sum(word in other for other in words)
            rarity = math.log(1 + (len(words) - having + 0.5) / (having + 0.5))
            f = document.count(word)
            score += rarity * f / (f + k1 * (1 - b + b * len(document) / mean_length))
        scores.append(score)
    return scores


def bag(batch: list[Any]) -> tuple[Tensor, Tensor]:
    """Lengths of texts against zeros: BM25 reads the examples themselves, not the batch."""
    texts = [example["text"] if isinstance(example, dict) else example for example in batch]
    return torch.tensor([[float(len(text))] for text in texts]), torch.zeros(len(batch), 1)


def text_chain(examples: list[Any]) -> Chain:
    model = nn.Linear(1, 1)
    return Chain(Stage("only", model=model, objective=Regression(), data=examples, collate=bag, batch_size=4))


@pytest.fixture
def _bm25s() -> None:
    pytest.importorskip("bm25s", reason="needs stagetrace[text]")


@pytest.mark.usefixtures("_bm25s")
@each_reduction
@pytest.mark.parametrize("settings", [{}, {"k1": 0.9, "b": 0.4}])
def test_bm25_equals_the_formula_by_hand(reduction: Any, settings: dict[str, Any]):
    k1, b = settings.get("k1", 1.5), settings.get("b", 0.75)
    rows = torch.tensor([bm25_by_hand(TEXTS, question, k1, b) for question in QUESTIONS], dtype=torch.float64)
    as_dicts = (
        text_chain([{"text": text} for text in TEXTS]),
        Query([{"text": q} for q in QUESTIONS], reduction=reduction),
    )
    as_strings = text_chain(TEXTS), Query(QUESTIONS, reduction=reduction, batch_size=3)
    for (chain, query), text in ((as_dicts, "text"), (as_strings, str)):
        found = BM25(text, **settings).removal_effects(chain, query, "only")
        torch.testing.assert_close(found, reduced(rows, reduction), rtol=1e-12, atol=1e-15)


@pytest.mark.usefixtures("_bm25s")
@pytest.mark.parametrize(
    ("examples", "text", "message"),
    [
        ([{"text": "a"}], "body", r"BM25: stage 'only': example 0 has no column 'body', it is a dict with \['text'\]"),
        (["a"], "text", "example 0 has no column 'text', it is str; give text="),
        ([{"text": "a"}, {"text": 3}], "text", "the text of example 1 is int, not str"),
        (["", "?!"], str, "no text of stage 'only' has a word"),
    ],
)
def test_what_is_no_text_is_refused(examples, text, message):
    with pytest.raises((DescriptionError, DataError), match=message):
        BM25(text).removal_effects(text_chain(examples), Query(examples), "only")


def test_a_missing_library_says_what_to_install(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "bm25s", None)
    with pytest.raises(DescriptionError, match=r"pip install 'stagetrace\[text\]'"):
        BM25(str).removal_effects(text_chain(TEXTS), Query(QUESTIONS), "only")


# Random


def test_random_is_drawn_by_its_seed():
    chain, query = chain_of(FROZEN_RIDGE, solved(FROZEN_RIDGE)), query_of(FROZEN_RIDGE)
    state = torch.get_rng_state()
    one, again, other = (Random(seed).removal_effects(chain, query, "pretrain") for seed in (0, 0, 1))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
    assert len(one.unique()) == 23
    assert torch.equal(torch.get_rng_state(), state)


# All alike


class Told:
    """A progress that keeps which tasks it was told of, and checks that each was done to its end."""

    def __init__(self) -> None:
        self.tasks: list[str] = []

    @contextmanager
    def task(self, what: str, total: int | None, unit: str) -> Generator[Callable[..., None]]:
        self.tasks.append(f"{what}, {unit}")
        done = 0

        def advance(n: int = 1, note: str = "") -> None:
            nonlocal done
            del note
            done += n

        yield advance
        assert total is None or done == total, what


ALL: list[Estimator] = [
    Influence(),
    Influence(Identity(), name="identity curvature"),
    SingleStage(solver=CG(damping=0.1)),
    GradientDot(),
    EmbeddingSimilarity("embedding"),
    Random(),
    BM25(lambda example: "a" if float(example[0][0]) > 0 else "b"),
]
each_estimator = pytest.mark.parametrize("estimator", ALL, ids=lambda estimator: estimator.name)


@each_estimator
@each_reduction
def test_the_interface(estimator: Estimator, reduction: Any):
    """Names, shapes, dtype, progress, and nothing of the user's touched."""
    if isinstance(estimator, BM25):
        pytest.importorskip("bm25s", reason="needs stagetrace[text]")
    case, told = FROZEN_LOGISTIC, Told()
    chain, query = chain_of(case, solved(case)), query_of(case, reduction=reduction)
    before = [fingerprint_model(stage.model) for stage in chain.stages]
    grads = [[p.requires_grad for p in stage.model.parameters()] for stage in chain.stages]
    for stage in case.stages:
        found = estimator.removal_effects(chain, query, stage.name, told)
        n = len(stage.x)
        assert found.shape == ((len(case.query_x), n) if reduction == "none" else (n,))
        assert (found.dtype, found.device.type, found.requires_grad) == (torch.float64, "cpu", False)
    assert bool(told.tasks) != isinstance(estimator, Random)
    assert [fingerprint_model(stage.model) for stage in chain.stages] == before
    assert [[p.requires_grad for p in stage.model.parameters()] for stage in chain.stages] == grads
    assert all(p.grad is None for stage in chain.stages for p in stage.model.parameters())


@each_estimator
def test_an_unknown_stage_is_refused(estimator: Estimator):
    chain, query = chain_of(FROZEN_LOGISTIC, solved(FROZEN_LOGISTIC)), query_of(FROZEN_LOGISTIC)
    with pytest.raises(DescriptionError, match=r"'other'.* are 'pretrain', 'finetune'"):
        estimator.removal_effects(chain, query, "other")


def test_units():
    calibrated = {estimator.name for estimator in ALL if estimator.unit == "query loss"}
    assert calibrated == {"multi-stage influence", "single-stage influence"}
    assert len({estimator.name for estimator in ALL}) == len(ALL)
    assert Influence({"pretrain": Identity()}).unit is None
    assert Influence({"pretrain": GaussNewton()}).unit == "query loss"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Influence(name=" "), "Influence.name=.*short text"),
        (lambda: Influence(Hessian), "Influence.curvature=.*instance such as"),  # pyright: ignore[reportArgumentType]
        (lambda: Influence(solver={"pretrain": Hessian()}), "Influence.solver=.*Lanczos"),  # pyright: ignore[reportArgumentType]
        (lambda: SingleStage(curvature=Lanczos()), "SingleStage.curvature=.*GaussNewton"),  # pyright: ignore[reportArgumentType]
        (lambda: GradientDot(name=3), "GradientDot.name="),  # pyright: ignore[reportArgumentType]
        (lambda: EmbeddingSimilarity(nn.Linear), "submodule's name or a function"),  # pyright: ignore[reportArgumentType]
        (lambda: EmbeddingSimilarity(3), "submodule's name or a function"),  # pyright: ignore[reportArgumentType]
        (lambda: BM25(3), "column's name or a function"),  # pyright: ignore[reportArgumentType]
        (lambda: BM25("text", k1=0), "k1=.*positive"),
        (lambda: BM25("text", b=1.5), "b=.*from 0 to 1"),
        (lambda: Random(seed=0.5), "seed=.*whole number"),  # pyright: ignore[reportArgumentType]
    ],
)
def test_settings_are_checked_at_birth(make: Callable[[], object], message: str):
    with pytest.raises(DescriptionError, match=message):
        make()

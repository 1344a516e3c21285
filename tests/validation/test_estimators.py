"""What all estimators have in common, and those that need no formula: influence itself, and chance."""

from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from stagetrace import CG, Direct, GaussNewton, Hessian, Identity, Lanczos, Query, trace
from stagetrace.errors import DescriptionError
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
from tests.cases import slow_but
from tests.chains import FROZEN_LOGISTIC, FROZEN_RIDGE, STRONG_TANH, chain_of, query_of
from tests.oracles import solved
from tests.validation.shared import each_reduction


@each_reduction
@pytest.mark.parametrize("position", [0, 1])
@pytest.mark.parametrize("case", [FROZEN_LOGISTIC, STRONG_TANH], ids=lambda case: case.name)
@pytest.mark.parametrize(
    "settings", slow_but([{}, {"curvature": Identity()}, {"curvature": GaussNewton(), "solver": Direct()}], {})
)
def test_influence_is_the_removal_effect_of_trace(case, position, reduction, settings):
    chain, query, name = chain_of(case, solved(case)), query_of(case, reduction=reduction), case.stages[position].name
    expected = trace(chain, query, of=[name], **settings)[name].removal_effect
    assert torch.equal(Influence(**settings).removal_effects(chain, query, name), expected)


def test_influence_has_the_sign_of_the_truth():
    chain, query = chain_of(FROZEN_RIDGE, solved(FROZEN_RIDGE)), query_of(FROZEN_RIDGE)
    true = removal_effects(chain, query, "pretrain", range(5), share=0.05) / 0.05
    predicted = Influence(solver=Lanczos(damping=0.0)).removal_effects(chain, query, "pretrain")[:5]
    torch.testing.assert_close(predicted, true, rtol=0.05, atol=1e-6)


def test_removing_the_query_itself_is_taken_to_hurt():
    """A query example that is also a training example: the gradients are one, the embeddings are one."""
    case = FROZEN_LOGISTIC
    chain = chain_of(case, solved(case))
    query = Query(TensorDataset(case.stages[1].x[:6], case.stages[1].y[:6]), reduction="none")
    for estimator in (GradientDot(), Influence(GaussNewton()), EmbeddingSimilarity("head")):
        effects = estimator.removal_effects(chain, query, "finetune")
        assert bool((effects[:, :6].diagonal() > 0).all()), estimator.name


def test_random_is_drawn_by_its_seed():
    chain, query = chain_of(FROZEN_RIDGE, solved(FROZEN_RIDGE)), query_of(FROZEN_RIDGE)
    state = torch.get_rng_state()
    one, again, other = (Random(seed).removal_effects(chain, query, "pretrain") for seed in (0, 0, 1))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
    assert len(one.unique()) == 23
    assert torch.equal(torch.get_rng_state(), state)


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

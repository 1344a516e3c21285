"""A model as a function of its parameters: evaluated in eval mode, by any of its methods, and left as it was."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from stagetrace import Chain, Frozen, GaussNewton, Hessian, Proximal, Query, Stage, trace
from stagetrace.curvature.chunk import hessian_linearised, hessian_retained_graph
from stagetrace.errors import DescriptionError
from stagetrace.objectives import Classification
from stagetrace.solvers import Lanczos
from stagetrace.stages.bound import BoundStage
from stagetrace.stages.evaluation import Evaluation
from stagetrace.stages.gradient import mean_gradient
from stagetrace.stages.kernels import differentiable_kernels
from stagetrace.tracing.contract import forward_mode, one_by_one, per_example
from tests import jobs

X = torch.randn(7, 3, generator=torch.Generator().manual_seed(1))
Y = torch.tensor([0, 1, 1, 0, 1, 0, 0])


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        norm = nn.BatchNorm1d(4)
        self.embedding = nn.Sequential(nn.Linear(3, 4), norm, nn.Dropout(0.5))
        self.head = nn.Linear(4, 2)
        with torch.no_grad():
            for buffer in (norm.running_mean, norm.running_var):
                assert buffer is not None
                buffer.uniform_(0.5, 2.0)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.embedding(x))


def stage(model: nn.Module, objective: Any = None, data: Any = None, **settings: Any) -> Stage:
    return Stage(
        settings.pop("name", "only"),
        model=model,
        objective=objective or Classification(),
        data=data or TensorDataset(X, Y),
        batch_size=3,
        **settings,
    )


def gradient_of(stage: Stage) -> Tensor:
    return mean_gradient(BoundStage.of(stage, None).risk).trained.squeeze(1)


def gradient_by_hand(model: nn.Module, loss: Callable[[nn.Module], Tensor]) -> Tensor:
    """The gradient of a mean loss of a copy in eval mode, by plain autograd."""
    evaluated = copy.deepcopy(model).eval()
    gradients = torch.autograd.grad(loss(evaluated), list(evaluated.parameters()))
    return torch.cat([g.reshape(-1) for g in gradients])


def cross_entropy(model: nn.Module) -> Tensor:
    return nn.functional.cross_entropy(model(X.to(next(model.parameters()).dtype)), Y)


# What is the caller's stays the caller's


def state_of(model: nn.Module) -> dict[str, Any]:
    return {
        "modes": {name: module.training for name, module in model.named_modules()},
        "flags": {name: p.requires_grad for name, p in model.named_parameters()},
        "places": {name: p.data_ptr() for name, p in model.named_parameters()},
        "gradients": {name: p.grad for name, p in model.named_parameters()},
        "hooks": {name: [dict(m._forward_hooks), dict(m._backward_hooks)] for name, m in model.named_modules()},
        "kernels": (torch.backends.mha.get_fastpath_enabled(), torch.backends.mkldnn.enabled),
    }


@pytest.mark.filterwarnings("ignore:.*it is evaluated in eval mode:stagetrace.errors.StagetraceWarning")
@pytest.mark.parametrize("training", [True, False])
def test_a_trace_leaves_models_flags_and_hooks_alone(training: bool):
    before, after = Net(), Net()
    after.embedding.load_state_dict(before.embedding.state_dict())
    called: list[str] = []
    for model in (before, after):
        model.train(training)
        model.embedding[2].train(not training)
        model.head.register_forward_hook(lambda *_: called.append("forward"))
        model.embedding.requires_grad_(False)
    before.requires_grad_(True)
    states = [state_of(model) for model in (before, after)]
    buffers = [{name: b.clone() for name, b in model.named_buffers()} for model in (before, after)]
    values = [{name: p.detach().clone() for name, p in model.named_parameters()} for model in (before, after)]
    chain = Chain(stage(before, name="before"), stage(after, name="after", link=Frozen("embedding")))
    trace(chain, Query([(X[0], Y[0])]), curvature=GaussNewton(), solver=Lanczos(damping=1.0, max_steps=3, rtol=0.9))
    for model, state, buffer, value in zip((before, after), states, buffers, values, strict=True):
        assert state_of(model) == state
        for name, now in (*model.named_buffers(), *model.named_parameters()):
            assert torch.equal(now, {**buffer, **value}[name])
    assert called  # hooks are part of what the model computes, so they run


def test_the_model_is_evaluated_in_eval_mode():
    model = Net().train()
    torch.testing.assert_close(gradient_of(stage(model)), gradient_by_hand(model, cross_entropy))
    torch.testing.assert_close(gradient_of(stage(model)), gradient_of(stage(copy.deepcopy(model).eval())))


def test_parameters_are_not_copied():
    model = Net()
    described = stage(model)
    theirs = dict(model.named_parameters())
    assert all(p is theirs[name] for name, p in described.evaluated.named_parameters())
    assert all(b is not dict(model.named_buffers())[n] for n, b in described.evaluated.named_buffers())


def test_a_model_that_cannot_be_copied_is_refused():
    model = Net()
    model.cache = model.head.weight * 2  # a tensor with a gradient history
    described = stage(model)
    with pytest.raises(
        DescriptionError, match=r"stage 'only': the model cannot be copied \(RuntimeError: Only Tensors"
    ):
        described.evaluated  # noqa: B018


EXPORTING = getattr(torch.compiler, "is_exporting", None)
"""The question whether a model may look into its data, which came with PyTorch 2.7."""


def test_kernels_are_restored_after_an_error():
    def switches() -> tuple[Any, ...]:
        exporting = EXPORTING is not None and EXPORTING()
        return torch.backends.mha.get_fastpath_enabled(), torch.backends.mkldnn.enabled, exporting

    before = switches()

    def fails() -> None:
        with differentiable_kernels(recurrent=True, fused_on_cpu=True):
            assert switches() == (False, False, EXPORTING is not None)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fails()
    assert switches() == before == (True, True, False)


class Looking(nn.Module):
    """Leaves a step out where its data allow that, unless it is asked to do the same for all data."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        if torch.compiler.is_exporting() or not mask.all():
            x = x * mask
        return self.layer(x)


@pytest.mark.skipif(EXPORTING is None, reason="this PyTorch has no torch.compiler.is_exporting")
def test_models_that_look_into_their_data_have_batched_and_traced_derivatives():
    mask = torch.ones(7, 3)
    mask[2, 1] = 0
    model = Looking()
    described = stage(model, data=TensorDataset(X, mask, Y))
    risk = BoundStage.of(described, None).risk
    batch = next(iter(risk.read([range(7)])))
    adjoint = torch.randn(risk.trained.size, 1)
    expected = gradient_by_hand(model, lambda m: nn.functional.cross_entropy(m(X, mask), Y))
    torch.testing.assert_close(per_example(risk, batch, adjoint)[1].mean(dim=0), adjoint.T @ expected)
    torch.testing.assert_close(hessian_linearised(risk, batch)(adjoint), hessian_retained_graph(risk, batch)(adjoint))


def test_a_compiled_model_is_evaluated_without_the_compiler():
    inner = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    called: list[int] = []

    def backend(graph: Any, inputs: Any) -> Any:
        called.append(len(inputs))
        return graph

    compiled: Any = torch.compile(inner, backend=backend)
    torch.testing.assert_close(gradient_of(stage(compiled)), gradient_by_hand(inner, cross_entropy))
    risk = BoundStage.of(stage(compiled), None).risk
    assert next(iter(risk.trained_values)) == "_orig_mod.0.weight"
    assert forward_mode(risk, next(iter(risk.read([range(7)]))), risk.trained.zeros(1))[1].shape == (7, 1)
    assert not called
    assert type(compiled).__name__ == "OptimizedModule"


# Ways to write a model


class Methods(nn.Module):
    """A model that the loss reaches by other methods than `forward`."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.top = nn.Linear(3, 4), nn.Linear(4, 2)

    def encode(self, x: Tensor) -> Tensor:
        return self.body(x).tanh()

    def logits(self, x: Tensor) -> Tensor:
        return self.top(self.encode(x))

    def penalty(self) -> Tensor:
        return self.top.weight.square().sum()

    def forward(self, x: Tensor) -> Tensor:
        raise NotImplementedError


def methods_loss(model: Any, batch: Any) -> Tensor:
    x, y = batch
    return nn.functional.cross_entropy(model.logits(x), y, reduction="none") + 0.1 * model.penalty()


def test_a_loss_may_use_any_method_of_the_model():
    model = Methods()
    expected = gradient_by_hand(model, lambda m: methods_loss(m, (X, Y)).mean())
    described = stage(model, objective=methods_loss)
    torch.testing.assert_close(gradient_of(described), expected)
    risk = BoundStage.of(described, None).risk
    batch = next(iter(risk.read([range(7)])))
    adjoint = torch.randn(risk.trained.size, 2)
    for way in (forward_mode, per_example, one_by_one):
        torch.testing.assert_close(way(risk, batch, adjoint)[1].mean(dim=0), adjoint.T @ expected)
    assert torch.isfinite(Hessian().operator(BoundStage.of(described, None)) @ adjoint).all()


def test_parametrised_weights_are_parameters():
    model = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(3, 4)), nn.Tanh(), nn.Linear(4, 2))
    torch.testing.assert_close(gradient_of(stage(model)), gradient_by_hand(model, cross_entropy))


def test_data_in_float32_for_a_model_in_float64():
    model = Net().double()
    data = TensorDataset(X, Y)
    gradient = gradient_of(stage(model, data=data))
    assert gradient.dtype == torch.float64
    torch.testing.assert_close(gradient, gradient_by_hand(model, cross_entropy), rtol=1e-12, atol=1e-14)
    assert data.tensors[0].dtype == torch.float32


class Mixed(nn.Module):
    """A body in bfloat16 under a head in float32."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(3, 4).bfloat16(), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x.bfloat16()).tanh().float())


def test_parameters_of_two_dtypes_share_a_vector_of_the_wider():
    model = Mixed()
    risk = BoundStage.of(stage(model), None).risk
    gradient = gradient_of(stage(model))
    assert gradient.dtype == risk.trained.dtype == torch.float32
    # By batches and by the whole differ by rounding in bfloat16, whose unit is 2^-8.
    torch.testing.assert_close(gradient, gradient_by_hand(model, cross_entropy).float(), rtol=0.02, atol=0.005)
    batch = next(iter(risk.read([range(7)])))
    adjoint = torch.ones(risk.trained.size, 1)
    dots = [way(risk, batch, adjoint)[1] for way in (forward_mode, per_example, one_by_one)]
    for other in dots[1:]:
        torch.testing.assert_close(other, dots[0], rtol=0.02, atol=0.02)
    assert all(found.dtype == torch.float32 for found in dots)
    products = Hessian().operator(BoundStage.of(stage(model), None)) @ adjoint
    assert products.dtype == torch.float32
    assert torch.isfinite(products).all()


def test_untrained_parameters_are_constants():
    model = Net()
    model.embedding.requires_grad_(False)
    risk = BoundStage.of(stage(model), None).risk
    assert list(risk.trained_values) == ["head.weight", "head.bias"]
    evaluated = copy.deepcopy(model).eval()
    expected = torch.autograd.grad(cross_entropy(evaluated), [evaluated.head.weight, evaluated.head.bias])
    torch.testing.assert_close(gradient_of(stage(model)), torch.cat([g.reshape(-1) for g in expected]))


def test_alpha_is_given_or_nothing():
    before, after = Net(), Net()
    moved = BoundStage.of(stage(after, link=Proximal("embedding", alpha=0.3)), stage(before, name="before"))
    assert moved.link_settings == {"alpha": 0.3}
    assert BoundStage.of(stage(before), None).link_settings == {}


@pytest.mark.parametrize(("projected", "kept"), [(0, False), (2, True)])
def test_convolutions_keep_their_kernels_beside_recurrence_that_is_not_fused(projected: int, kept: bool):
    """A projection has no fused kernel on the CPU; switching those off would slow convolutions for nothing."""
    seen: list[Any] = []

    class Watched(nn.LSTM):
        def forward(self, *given: Any) -> Any:
            seen.append(torch.backends.mkldnn.enabled)
            return super().forward(*given)

    model = Watched(3, 4, proj_size=projected)
    with torch.no_grad():
        Evaluation(model)({}, lambda module: module(torch.ones(2, 1, 3))[0])
    assert seen == [kept]


FIRST_USE = """
import torch
from stagetrace import Chain, Query, Stage, trace

data = [(torch.tensor([1.0, x]), torch.tensor([x * x])) for x in (0.0, 0.5, 1.0, 2.0)]
loss = lambda model, batch: (model(batch[0]) - batch[1]).square().sum(dim=1)
trace(Chain(Stage("only", model=torch.nn.Linear(2, 1), objective=loss, data=data, weight_decay=0.1)), Query(data))
"""


@pytest.mark.slow
def test_the_first_use_of_forward_mode_says_nothing_of_pytorchs_own():
    """In a process of its own: PyTorch compiles its rules once, and warns of how."""
    ended = jobs.run("-W", "always", "-c", FIRST_USE)
    assert ended.returncode == 0, ended.stderr
    assert "torch.jit" not in ended.stderr

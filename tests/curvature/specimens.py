"""Small models of every kind with data and a loss, and their derivatives by plain means.

Nothing in the oracles comes from the library: the losses are written out again, and derivatives are those of
`torch.func` and `torch.autograd` in float64 under the kernels that have them.
"""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad, jacfwd
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.data import TensorDataset

from stagetrace import Stage
from stagetrace.objectives import Classification, Regression
from stagetrace.stages.bound import BoundStage
from stagetrace.stages.risk import Risk

N = 7
SINGLE = 500 * torch.finfo(torch.float32).eps
"""Allowed error in float32: some layers of roundings, relatively to the largest entry."""


class Convolutional(nn.Module):
    """Convolution, BatchNorm, a skip connection: a residual network in small."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(1, 2, 3, padding=1), nn.BatchNorm2d(2)
        self.block, self.block_norm = nn.Conv2d(2, 2, 3, padding=1, bias=False), nn.BatchNorm2d(2)
        self.head = nn.Linear(2 * 4, 3)
        with torch.no_grad():
            for norm in (self.norm, self.block_norm):
                norm.running_mean.normal_()
                norm.running_var.uniform_(0.5, 2.0)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.norm(self.stem(x)))
        x = torch.tanh(x + self.block_norm(self.block(x)))
        return self.head(F.max_pool2d(x, 2).flatten(1))


class Attention(nn.Module):
    """Embedding, LayerNorm and MultiheadAttention over tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.norm = nn.Embedding(6, 4), nn.LayerNorm(4)
        self.attention, self.head = nn.MultiheadAttention(4, 2, batch_first=True), nn.Linear(4, 2)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.norm(self.embedding(tokens))
        return self.head(self.attention(x, x, x, need_weights=False)[0].mean(dim=1))


class Encoder(nn.Module):
    """A TransformerEncoderLayer, which has a fused fast path in eval mode."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(4, 2, 5, dropout=0.1, activation="gelu", batch_first=True)
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(x)[:, -1])


class Recurrent(nn.Module):
    def __init__(self, kind: type[nn.LSTM] | type[nn.GRU]) -> None:
        super().__init__()
        self.core, self.head = kind(3, 3, batch_first=True), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.core(x)[0][:, -1])


class Tied(nn.Module):
    """One weight in two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(3, 3), nn.Linear(3, 3, bias=False), nn.Linear(3, 2)
        self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.second(self.first(x).tanh()).tanh())


@dataclass(frozen=True)
class Specimen:
    """A model and its data; classification where the targets are labels, else regression."""

    name: str
    make: Callable[[], nn.Module]
    inputs: tuple[int, ...]
    outputs: int = 2
    tokens: bool = False
    regression: bool = False

    def model(self, dtype: torch.dtype = torch.float64) -> nn.Module:
        """The same values for every dtype, in training mode as a user may leave it."""
        with torch.random.fork_rng(), torch.no_grad():
            torch.manual_seed(4)
            model = self.make()
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=0.1)  # no bias stays zero
        return model.to(dtype)

    def data(self) -> TensorDataset:
        generator = torch.Generator().manual_seed(5)
        if self.tokens:
            x = torch.randint(0, 6, (N, *self.inputs), generator=generator)
        else:
            x = torch.randn(N, *self.inputs, generator=generator)
        if self.regression:
            return TensorDataset(x, torch.randn(N, self.outputs, generator=generator))
        return TensorDataset(x, torch.randint(0, self.outputs, (N,), generator=generator))

    def stage(self, dtype: torch.dtype = torch.float64, **changes: Any) -> Stage:
        described: dict[str, Any] = {
            "model": self.model(dtype),
            "objective": Regression() if self.regression else Classification(),
            "data": self.data(),
        }
        return Stage(changes.pop("name", "only"), **(described | changes))

    def bound(self, dtype: torch.dtype = torch.float64, **changes: Any) -> BoundStage:
        return BoundStage.of(self.stage(dtype, **changes), None)

    def risk(self, dtype: torch.dtype = torch.float64, **changes: Any) -> Risk:
        return self.bound(dtype, **changes).risk


MLP = Specimen("mlp", lambda: nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3)), (3,), 3)
SQUARED_MLP = Specimen(
    "mlp, squared", lambda: nn.Sequential(nn.Linear(3, 4), nn.Sigmoid(), nn.Linear(4, 2)), (3,), regression=True
)
CONVOLUTIONAL = Specimen("convolutional", Convolutional, (1, 4, 4), 3)
ATTENTION = Specimen("attention", Attention, (5,), tokens=True)
ENCODER = Specimen("encoder layer", Encoder, (4, 4))
LSTM = Specimen("lstm", lambda: Recurrent(nn.LSTM), (4, 3))
GRU = Specimen("gru", lambda: Recurrent(nn.GRU), (4, 3), regression=True)
TIED = Specimen("tied", Tied, (3,))
SPECIMENS = (MLP, SQUARED_MLP, CONVOLUTIONAL, ATTENTION, ENCODER, LSTM, GRU, TIED)


class plain_kernels(ExitStack):
    """The kernels that have every derivative."""

    def __enter__(self) -> "plain_kernels":
        super().__enter__()
        before = torch.backends.mha.get_fastpath_enabled()
        self.callback(torch.backends.mha.set_fastpath_enabled, before)
        torch.backends.mha.set_fastpath_enabled(False)
        self.enter_context(sdpa_kernel(SDPBackend.MATH))
        return self


@lru_cache
def evaluated(specimen: Specimen) -> nn.Module:
    return specimen.model(torch.float64).eval()


@lru_cache
def content(specimen: Specimen) -> tuple[Tensor, Tensor]:
    x, y = specimen.data().tensors
    return x if specimen.tokens else x.double(), y.double() if specimen.regression else y


def functions_of(specimen: Specimen) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor], Tensor]:
    """Outputs `[n, k]` and losses `[n]` as functions of one vector of all parameters, and the vector of the model."""
    model, (x, y) = evaluated(specimen), content(specimen)
    parameters = dict(model.named_parameters())
    sizes = [p.numel() for p in parameters.values()]

    def outputs(vector: Tensor) -> Tensor:
        pieces = zip(parameters.items(), vector.split(sizes), strict=True)
        return functional_call(model, {name: piece.reshape(p.shape) for (name, p), piece in pieces}, (x,))

    def losses(vector: Tensor) -> Tensor:
        z = outputs(vector)
        if specimen.regression:
            return (z - y).square().mean(dim=1)
        return z.logsumexp(dim=1) - z[torch.arange(N), y]

    return outputs, losses, torch.cat([p.detach().reshape(-1) for p in parameters.values()])


@lru_cache
def dense_hessians(specimen: Specimen) -> Tensor:
    """Every example's Hessian, `[n, size, size]`."""
    _, losses, vector = functions_of(specimen)
    with plain_kernels():
        hessians = [jacfwd(grad(lambda v: losses(v)[i]))(vector).detach() for i in range(N)]  # noqa: B023
    found = torch.stack(hessians)
    torch.testing.assert_close(found, found.mT)  # `torch.func.hessian` fails this with attention (PyTorch 2.13)
    return found


@lru_cache
def dense_gauss_newtons(specimen: Specimen) -> Tensor:
    """Every example's `J' H_outputs J`, `[n, size, size]`, with the outputs' Hessian by hand."""
    function, _, vector = functions_of(specimen)
    with plain_kernels():
        jacobian = torch.func.jacrev(function)(vector).detach()  # [n, outputs, size]
        outputs = function(vector)
    if specimen.regression:
        curvature = torch.eye(specimen.outputs, dtype=torch.float64) * (2 / specimen.outputs)
        curvature = curvature.expand(N, -1, -1)
    else:
        p = outputs.softmax(dim=1).detach()
        curvature = torch.diag_embed(p) - p.unsqueeze(2) * p.unsqueeze(1)
    return jacobian.mT @ curvature @ jacobian


@lru_cache
def example_gradients(specimen: Specimen) -> Tensor:
    """The gradient of each example's loss, by a loop of plain autograd: `[n, size]` in float64."""
    model, (x, y) = evaluated(specimen), content(specimen)
    rows = []
    for i in range(N):
        loss = (F.mse_loss if specimen.regression else F.cross_entropy)(model(x[[i]]), y[[i]])
        rows.append(torch.cat([g.reshape(-1) for g in torch.autograd.grad(loss, list(model.parameters()))]))
    return torch.stack(rows)


class Backwards(torch.autograd.Function):
    """The identity, twice differentiable backwards and not at all forwards."""

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient.clone()


class BackwardsBatched(Backwards):
    """The same, with a rule for batches of examples."""

    generate_vmap_rule = True


class Once(Backwards):
    """The identity, differentiable once."""

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient.clone()


class Through(nn.Module):
    """A small network with some operation in it."""

    def __init__(self, operation: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.operation, self.last = nn.Linear(3, 4), operation, nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.operation(self.first(x).tanh()))


class Bag(nn.Module):
    """The function behind EmbeddingBag, which has neither forward mode nor a second derivative."""

    def __init__(self) -> None:
        super().__init__()
        self.bag, self.head = nn.Embedding(6, 4), nn.Linear(4, 2)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(F.embedding_bag(tokens, self.bag.weight, mode="mean"))


class Grid(nn.Module):
    """Sampling from an image: a fused kernel with second derivatives and without forward mode."""

    def __init__(self) -> None:
        super().__init__()
        self.shift, self.head = nn.Parameter(torch.tensor([0.1, -0.2])), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        at = torch.tensor([[-0.5, 0.3], [0.6, 0.1], [0.2, -0.7], [-0.1, 0.4]], dtype=x.dtype)
        grid = (at.reshape(1, 2, 2, 2) + self.shift).expand(len(x), -1, -1, -1)
        return self.head(F.grid_sample(x, grid, align_corners=False).flatten(1))


BACKWARDS = Specimen("custom backward", lambda: Through(Backwards.apply), (3,))
BACKWARDS_BATCHED = Specimen("custom backward with vmap", lambda: Through(BackwardsBatched.apply), (3,))
ONCE = Specimen("once differentiable", lambda: Through(Once.apply), (3,))
BAG = Specimen("embedding bag", Bag, (5,), tokens=True)
GRID = Specimen("grid sample", Grid, (1, 4, 4))


def differentiates_twice(specimen: Specimen) -> bool:
    """Whether this PyTorch has a second derivative for what the specimen does: older ones lack some."""
    model = specimen.model()
    x = specimen.data()[0][0].unsqueeze(0)
    loss = model(x.double() if x.is_floating_point() else x).square().sum()
    gradients = torch.autograd.grad(loss, list(model.parameters()), create_graph=True)
    try:
        total = torch.stack([g.square().sum() for g in gradients]).sum()
        torch.autograd.grad(total, list(model.parameters()), allow_unused=True)
    except RuntimeError:
        return False
    return True

"""Products with H and with the Gauss-Newton matrix G of the curvature's examples, in float64 and plain PyTorch.

Independent of the library's: both by a second backward pass through a graph that is kept,

    H v = d(g . v) / dw,    G v = J' B (J v),    J v = d((J' u) . v) / du,    B = (diag p - p p') / n.
"""

import copy
from collections.abc import Callable
from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.rivals.given import Given

Product = Callable[[Tensor], Tensor]


@final
class Exact:
    """One model in float64 and its curvature's examples."""

    def __init__(self, given: Given) -> None:
        self.given = given
        self.model = copy.deepcopy(given.model).double()
        self.weights = list(self.model.parameters())
        inputs, self.labels = given.curvature_batch
        self.logits = self.model(inputs.double())
        self._slope: Tensor | None = None
        self._u: Tensor | None = None
        self._pulled: Tensor | None = None

    def hessian(self, v: Tensor) -> Tensor:
        if self._slope is None:
            loss = F.cross_entropy(self.logits, self.labels)
            self._slope = _flat(torch.autograd.grad(loss, self.weights, create_graph=True))
        return _flat(torch.autograd.grad(self._slope @ v, self.weights, retain_graph=True))

    def gauss_newton(self, v: Tensor) -> Tensor:
        if self._pulled is None:
            self._u = torch.zeros_like(self.logits, requires_grad=True)
            pulled = torch.autograd.grad(self.logits, self.weights, self._u, create_graph=True)
            self._pulled = _flat(pulled)
        assert self._u is not None
        (along,) = torch.autograd.grad(self._pulled @ v, self._u, retain_graph=True)
        p = self.logits.detach().softmax(dim=1)
        bent = p * (along - (p * along).sum(dim=1, keepdim=True)) / len(p)
        return _flat(torch.autograd.grad(self.logits, self.weights, bent, retain_graph=True))

    def query(self) -> Tensor:
        """The gradient of the mean loss of the queries."""
        inputs, labels = self.given.tests.tensors
        return _flat(torch.autograd.grad(F.cross_entropy(self.model(inputs.double()), labels), self.weights))

    def each_gradient(self, inputs: Tensor, labels: Tensor) -> Tensor:
        """`[n, parameters]`, an example at a time by `vmap`."""
        names = {name: p.detach() for name, p in self.model.named_parameters()}

        def loss(weights: dict[str, Tensor], one: Tensor, label: Tensor) -> Tensor:
            return F.cross_entropy(torch.func.functional_call(self.model, weights, (one[None],)), label[None])

        found = torch.func.vmap(torch.func.grad(loss), (None, 0, 0))(names, inputs.double(), labels)
        return torch.cat([found[name].flatten(1) for name in names], dim=1)

    def rows(self) -> Tensor:
        """R `[examples x classes, parameters]` with `R' R = G`: `sqrt(p_c / n) (J_c - sum_k p_k J_k)`."""
        inputs, _ = self.given.curvature_batch
        names = {name: p.detach() for name, p in self.model.named_parameters()}

        def logits(weights: dict[str, Tensor], one: Tensor) -> Tensor:
            return torch.func.functional_call(self.model, weights, (one[None],))[0]

        found: list[Tensor] = []
        for some in inputs.double().split(100):
            slopes = torch.func.vmap(torch.func.jacrev(logits), (None, 0))(names, some)
            jacobian = torch.cat([slopes[name].flatten(2) for name in names], dim=2)
            with torch.no_grad():
                p = self.model(some).softmax(dim=1)[:, :, None]
            found.append((p.sqrt() * (jacobian - (p * jacobian).sum(dim=1, keepdim=True))).flatten(0, 1))
        return torch.cat(found) / len(inputs) ** 0.5

    def scores(self, solutions: Tensor, batch: int = 256) -> Tensor:
        """`[queries, examples]` of solutions `[parameters, queries]`, positive = harmful."""
        inputs, labels = self.given.train.tensors
        parts = zip(inputs.split(batch), labels.split(batch), strict=True)
        return torch.cat([-(self.each_gradient(*part) @ solutions) for part in parts]).mT


def _flat(parts: tuple[Tensor, ...]) -> Tensor:
    return torch.cat([part.flatten() for part in parts])

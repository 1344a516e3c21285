"""Optimisers and their settings, and a small training run of PyTorch's own classes that is taken down step by step."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, optim

from stagetrace.recording.optimizers import Adjoint, State, rule_for


@dataclass(frozen=True)
class Case:
    optimizer: type[optim.Optimizer]
    settings: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        options = (f"{name}={value}" for name, value in self.settings.items() if name not in ("lr", "eps"))
        return ",".join([self.optimizer.__name__, *options])

    def make(self, *groups: list[Tensor], **settings: Any) -> optim.Optimizer:
        """The optimiser; every group after the first trains at half the rate."""
        settings = {"lr": 0.05, **self.settings, **settings}
        described = [{"params": group, "lr": settings["lr"] / (1 + (at > 0))} for at, group in enumerate(groups)]
        return self.optimizer(described, **settings)


CASES = [
    Case(optim.SGD),
    Case(optim.SGD, {"weight_decay": 0.1, "maximize": True}),
    Case(optim.SGD, {"momentum": 0.9, "dampening": 0.3, "weight_decay": 0.1}),
    Case(optim.SGD, {"momentum": 0.9, "nesterov": True, "weight_decay": 0.1, "maximize": True}),
    Case(optim.Adam),
    Case(optim.Adam, {"weight_decay": 0.1, "betas": (0.8, 0.95), "maximize": True}),
    Case(optim.Adam, {"amsgrad": True, "betas": (0.8, 0.7)}),
    Case(optim.Adam, {"lr": torch.tensor(0.05, dtype=torch.float64), "foreach": False}),
    Case(optim.Adam, {"fused": True}),
    Case(optim.AdamW, {"weight_decay": 0.1}),
    Case(optim.AdamW, {"weight_decay": 0.1, "amsgrad": True, "maximize": True, "betas": (0.8, 0.7)}),
    Case(optim.RMSprop),
    Case(optim.RMSprop, {"momentum": 0.9, "weight_decay": 0.1, "alpha": 0.8, "maximize": True}),
    Case(optim.RMSprop, {"centered": True, "alpha": 0.8}),
    Case(optim.RMSprop, {"centered": True, "momentum": 0.5, "alpha": 0.8, "weight_decay": 0.1}),
    Case(optim.Adagrad),
    Case(optim.Adagrad, {"lr_decay": 0.2, "weight_decay": 0.1, "initial_accumulator_value": 0.1, "maximize": True}),
    Case(optim.NAdam, {"weight_decay": 0.1}),
    Case(optim.NAdam, {"weight_decay": 0.1, "decoupled_weight_decay": True, "maximize": True}),
    Case(optim.RAdam, {"weight_decay": 0.1, "betas": (0.8, 0.9)}),
    Case(optim.RAdam, {"weight_decay": 0.1, "decoupled_weight_decay": True, "betas": (0.8, 0.9)}),
    Case(optim.Adamax, {"weight_decay": 0.1, "betas": (0.8, 0.7)}),
    Case(optim.Adadelta, {"weight_decay": 0.1, "maximize": True, "eps": 1e-3}),
    Case(optim.ASGD, {"weight_decay": 0.1, "t0": 2.0, "lambd": 0.1, "maximize": True}),
]

# The last row of the embedding is never seen, the one before in every second batch only.
ROWS = torch.tensor([0, 1, 2, 0, 1, 3, 2, 3])
SHAPES = {"rows": (5, 3), "weight": (3, 2), "bias": (2,)}
Start = dict[str, State]


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def loss(parameters: Mapping[str, Tensor], weights: Tensor, step: int) -> Tensor:
    """The weighted loss of a batch of four, without a parameter along which it is flat."""
    batch = torch.arange(4) + 4 * (step % 2)
    outputs = torch.tanh(parameters["rows"][ROWS[batch]]) @ parameters["weight"] + parameters["bias"]
    losses = (torch.tanh(outputs) - random(8, 2, seed=1)[batch]).square().sum(1)
    return (weights[batch] * losses).mean()


@dataclass(frozen=True)
class Step:
    """What a recording holds of a step, by parameter: the state before it, the gradient and the group as used."""

    states: Start
    gradients: dict[str, Tensor]
    groups: dict[str, dict[str, Any]]


def copied(slots: Mapping[str, Any]) -> dict[str, Any]:
    return {name: slot.clone() if isinstance(slot, Tensor) else slot for name, slot in slots.items()}


def train(case: Case, start: Start, weights: Tensor, steps: int) -> tuple[list[Step], Start, optim.Optimizer]:
    """Real steps on from `start`, in two groups, with the rate falling; the states at the end and the optimiser."""
    parameters = {name: state.value.clone().requires_grad_() for name, state in start.items()}
    optimizer = case.make([parameters["rows"]], [parameters["weight"], parameters["bias"]])
    for name, parameter in parameters.items():
        optimizer.state[parameter].update(copied(start[name].slots))

    def states() -> Start:
        return {name: State(p.detach().clone(), copied(optimizer.state[p])) for name, p in parameters.items()}

    path: list[Step] = []
    for step in range(steps):
        optimizer.zero_grad()
        loss(parameters, weights, step).backward()
        rows, others = (dict(group) for group in optimizer.param_groups)
        groups = {"rows": rows, "weight": others, "bias": others}
        gradients = {name: p.grad.clone() for name, p in parameters.items() if p.grad is not None}
        path.append(Step(states(), gradients, groups))
        optimizer.step()
        for group in optimizer.param_groups:
            group["lr"] = 0.9 * group["lr"]
    return path, states(), optimizer


def fresh() -> Start:
    return {name: State(0.5 * random(*shape, seed=2 + at)) for at, (name, shape) in enumerate(SHAPES.items())}


def warm(case: Case) -> Start:
    """Slots that four steps have left."""
    return train(case, fresh(), torch.ones(8, dtype=torch.float64), 4)[1]


Adjoints = dict[str, Adjoint]


def queries(end: Start, slots: tuple[str, ...], count: int = 2) -> Adjoints:
    """Queries linear in the end's values and slots: their derivatives there."""
    return {
        name: Adjoint(
            random(count, *state.value.shape, seed=20 + at),
            {
                slot: random(count, *state.value.shape, seed=30 + at)
                for slot in slots
                if state.slots.get(slot) is not None
            },
        )
        for at, (name, state) in enumerate(end.items())
    }


def answers(end: Start, adjoints: Adjoints) -> Tensor:
    """The queries' values at the end, `[k]`."""
    total = torch.zeros((), dtype=torch.float64)
    for name, adjoint in adjoints.items():
        for bar, value in [(adjoint.value, end[name].value)] + [
            (b, end[name].slots[s]) for s, b in adjoint.slots.items()
        ]:
            total = total + (bar * value).flatten(1).sum(1)
    return total


def reverse(
    path: list[Step], adjoints: Adjoints, weights: Tensor, optimizer: optim.Optimizer
) -> tuple[Adjoints, Tensor]:
    """Back to the start, with the Hessian products by autograd: the adjoints there, and dq/d(weights) `[k, 8]`."""
    rule = rule_for(optimizer)
    by_weight = torch.zeros(len(adjoints["bias"].value), 8, dtype=torch.float64)
    for at in reversed(range(len(path))):
        step = path[at]
        pulled = {
            name: rule.pull_back(state, step.gradients[name], step.groups[name], adjoints[name])
            for name, state in step.states.items()
        }
        leaves = {name: state.value.clone().requires_grad_() for name, state in step.states.items()}
        weight = weights.clone().requires_grad_()
        gradients = torch.autograd.grad(loss(leaves, weight, at), list(leaves.values()), create_graph=True)
        *products, by_example = torch.autograd.grad(
            gradients, [*leaves.values(), weight], [pulled[name][1] for name in leaves], is_grads_batched=True
        )
        by_weight = by_weight + by_example
        adjoints = {
            name: Adjoint(pulled[name][0].value + product, pulled[name][0].slots)
            for name, product in zip(leaves, products, strict=True)
        }
    return adjoints, by_weight

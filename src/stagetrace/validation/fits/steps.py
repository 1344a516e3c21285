"""Training by optimiser steps, many copies at once: all see the same batches, only example weights differ."""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, final, get_args

import torch
from torch import Tensor
from torch.func import grad, vmap

from stagetrace.errors import DifferentiationError, SolveError, refuse
from stagetrace.recording import Recording, Unrolled
from stagetrace.renamed import renamed_fields
from stagetrace.stages.bound import BoundStage
from stagetrace.stages.data import Batch
from stagetrace.stages.revalued import with_values
from stagetrace.stages.space import Params
from stagetrace.stages.stage import Stage, check_count
from stagetrace.validation.fits.fit import Copies, Fit, expanded, one_copy, starting_values
from stagetrace.validation.fits.optimizers import OptimizerSettings
from stagetrace.validation.rebinding import values_from_previous

SCHEDULES: Mapping[str, Callable[[int], Callable[[int], float]]] = {
    "constant": lambda steps: lambda step: 1.0,
    "cosine": lambda steps: lambda step: (1 + math.cos(math.pi * step / steps)) / 2,
}
"""What each step's learning rate is multiplied by."""

BatchGradient = Callable[[Tensor, Copies, Tensor, Batch], Tensor]
"""`gradient(points [copies, size], inherited, weights [copies, batch], batch) -> [copies, size]`."""


Start = Literal["warm", "previous", "cold"]
"""Where `Steps` can start."""


@final
@renamed_fields(rule="optimizer")
@dataclass(frozen=True)
class Steps(Fit):
    """`steps` steps of an optimiser on `mean over the batch of weight * loss + weight_decay / 2 |trained|^2`.

    The order of the batches is drawn by the seed alone, so that runs with and without an example see the same batches:
    its weight is 0 in one of them, and all else is equal (a paired comparison). The batch's mean is over all of its
    examples, whatever their weights. The model is evaluated in eval mode: no dropout, BatchNorm statistics fixed.
    A link's pull towards the stage before is added where it was part of the training loss (`Link.in_training_loss`);
    that of `Proximal` only models how few steps were taken.

    Args:
        optimizer: `Adam(...)`, `AdamW(...)` or `SGD(...)`, or your own.
        steps: how many.
        batch_size: examples a step.
        start: "warm" goes on from the stage's trained values, with what it kept of the stage before. "cold" draws its
            own values anew by the seed, with each module's `reset_parameters()`; what it trained further starts where
            the stage before ended. "previous" starts there, too, with all else (the head) at its trained values: that
            is neither where the traced training began nor where it ended, so its control ends at another model (see
            `Control`). None is "previous" where a warm start would let nothing through of a stage before that is
            trained again: what was trained further, without a pull in the loss. Else it is "warm".
        schedule: "constant" or "cosine" (down to zero at the end).

    Raises:
        SolveError: training diverged.
    """

    optimizer: OptimizerSettings
    steps: int
    batch_size: int
    start: Start | None = None
    schedule: Literal["constant", "cosine"] = "constant"
    is_stochastic: bool = field(default=True, init=False, repr=False)

    def __post_init__(self) -> None:
        check_count(self.steps, "Steps(steps=...)")
        check_count(self.batch_size, "Steps(batch_size=...)")
        if self.start is not None and self.start not in get_args(Start):
            refuse(f"Steps: start must be 'warm', 'previous' or 'cold', got {self.start!r}")
        if self.schedule not in SCHEDULES:
            refuse(f"Steps: schedule must be 'constant' or 'cosine', got {self.schedule!r}")

    def __call__(self, bound: BoundStage, weights: Tensor, previous: Copies | None, seed: int) -> Copies:
        copies, trained = len(weights), bound.trained
        values = self.start_of(bound, previous, copies, seed)
        inherited = {name: values[name] for name in bound.inherited.names}
        point = trained.flatten_columns(
            {name: values[name] for name in trained.names}
        ).mT.contiguous()  # [copies, size]
        optimizer = self.optimizer.build(point, trained)
        weights = weights.to(point)
        loss_gradient, penalty = batch_gradients(bound), _penalty_gradient(bound, previous)
        for step, batch in enumerate(self.batches(bound, seed)):
            gradient = loss_gradient(point, inherited, weights[:, list(batch.indices)], batch)
            point.grad = gradient + penalty(point)
            for group in optimizer.param_groups:
                group["lr"] = self.rate_at(step)
            optimizer.step()
        point.grad = None
        if not bool(torch.isfinite(point).all()):
            raise SolveError(
                f"{bound.stage.where}: training diverged (a parameter is not finite after {self.steps} steps "
                f"with lr={self.optimizer.lr:g}); lower lr"
            )
        return {**values, **trained.unflatten_columns(point.mT)}

    def record(self, bound: BoundStage, previous: Stage | None, folder: Path, seed: int) -> Stage:
        """The stage after these steps, without any removal, linked to their recording in `folder`.

        previous: the stage before as it was trained by such steps; None where it is what the chain says.

        Raises:
            DescriptionError: the pull of the stage's link would be in the training loss, which no recorded step has;
                its examples have weights; or the optimiser cannot be told of the stage's weight decay.
        """
        if bound.stage.link is not None and bound.anchored_to and bound.stage.link.in_training_loss:
            refuse(
                f"{bound.stage.where}: the pull of {type(bound.stage.link).__name__} is part of the loss that these "
                "steps minimise, and of no example's; record the training itself, or use the link as it is"
            )
        if bound.stage.example_weights is not None:
            refuse(
                f"{bound.stage.where}: its examples have weights, which recorded steps have in their loss alone; give "
                "an objective whose losses are multiplied by the examples' weights, and leave weights= out"
            )
        before = None if previous is None else dict(previous.model.named_parameters())
        copies = None if before is None else {name: p.detach().unsqueeze(0) for name, p in before.items()}
        stage = with_values(bound.stage, one_copy(self.start_of(bound, copies, 1, seed), 0))
        model = stage.model.eval()  # as in a retraining: no dropout, running statistics as they are
        named = dict(model.named_parameters())
        for name in bound.inherited.names:
            named[name].requires_grad_(False)  # kept, whatever the user's model says
        parameters = [named[name] for name in bound.trained.names]
        optimizer = self.optimizer.alone(
            parameters, bound.trained, [bound.decays[name] for name in bound.trained.names]
        )
        with Recording(folder, model, optimizer, inputs="again") as recording:
            for step, batch in enumerate(self.batches(bound, seed)):
                for group in optimizer.param_groups:
                    group["lr"] = self.rate_at(step)
                with recording.batch(batch.indices, batch.content):
                    optimizer.zero_grad()
                    stage.loss.losses(stage.loss.outputs(model, batch.content), batch.content).mean().backward()
                optimizer.step()
        optimizer.zero_grad()
        shared = bound.inherited_from | bound.anchored_to
        return replace(stage, link=Unrolled(shared, folder), weight_decay=0.0)

    def check(self, bound: BoundStage, *, follows: bool) -> None:
        """Refuse a warm start that lets nothing through of a stage before that is trained again."""
        if self.start == "warm" and follows and _starts_alone(bound):
            refuse(
                f"{bound.stage.where} trained further what it took over, and the stage before is trained again, too: "
                "from its own trained values (start='warm') nothing of that would come through. Repeat its recorded "
                "training (link=Unrolled(...), fit=Rerun()); without a recording type start='previous' or 'cold'"
            )

    def start_at(self, bound: BoundStage, *, follows: bool) -> Start:
        """Where the stage starts, the default settled. follows: whether the stage before is trained again, too."""
        return self.start or ("previous" if follows and _starts_alone(bound) else "warm")

    def start_of(self, bound: BoundStage, previous: Copies | None, copies: int, seed: int) -> Copies:
        """Every parameter of the copies before the first step."""
        follows = previous is not None
        self.check(bound, follows=follows)
        start = self.start_at(bound, follows=follows)
        values = starting_values(bound, copies, previous, anchored=start != "warm")
        if start == "cold":
            values.update(expanded(_cold_start(bound, seed, follows=follows), copies))
        return values

    def rate_at(self, step: int) -> float:
        """The learning rate of a step."""
        return self.optimizer.lr * SCHEDULES[self.schedule](self.steps)(step)

    def batches(self, bound: BoundStage, seed: int) -> Iterator[Batch]:
        """The batches of the steps, in order."""
        examples = bound.stage.examples
        return bound.risk.read(orders(len(examples), self.batch_size, self.steps, seed))


def _starts_alone(bound: BoundStage) -> bool:
    """Whether what the stage trained further hangs on the stage before by where it started alone."""
    link = bound.stage.link
    return bool(bound.anchored_to) and link is not None and not link.in_training_loss


def orders(examples: int, batch_size: int, steps: int, seed: int) -> list[list[int]]:
    """The batches of `steps` steps: every epoch a new order, the last batch of an epoch as it comes.

    Example:
        >>> [len(batch) for batch in orders(examples=5, batch_size=2, steps=4, seed=0)]
        [2, 2, 1, 2]
    """
    generator, plan = torch.Generator().manual_seed(seed), list[list[int]]()
    while len(plan) < steps:
        plan.extend(part.tolist() for part in torch.randperm(examples, generator=generator).split(batch_size))
    return plan[:steps]


def batch_gradients(bound: BoundStage) -> BatchGradient:
    """The gradient of the weighted mean loss of a batch, for each copy."""
    risk, trained = bound.risk.exact, bound.trained

    def gradient(points: Tensor, inherited: Copies, weights: Tensor, batch: Batch) -> Tensor:
        def loss(point: Tensor, frozen: Copies, weight: Tensor) -> Tensor:
            return weight @ risk.losses(trained.unflatten(point), frozen, batch) / len(batch)

        if len(points) == 1:
            alone = {name: value[0] for name, value in inherited.items()}
            return grad(loss)(points[0], alone, weights[0]).unsqueeze(0)
        try:
            return vmap(grad(loss))(points, inherited, weights)
        except RuntimeError as cause:
            raise DifferentiationError(
                f"{bound.stage.where}: several copies cannot be trained as one batched model "
                f"({str(cause).splitlines()[0]}); type together=1"
            ) from cause

    return gradient


def _penalty_gradient(bound: BoundStage, previous: Copies | None) -> Callable[[Tensor], Tensor]:
    """The gradient of the penalties in the training loss, at the points of several copies `[copies, size]`."""
    decay = bound.decay
    if not bound.anchored_to or not bound.stage.link or not bound.stage.link.in_training_loss:
        return lambda point: decay * point
    pull, start = bound.pull, bound.anchor.unsqueeze(0)
    if previous is not None:
        started = expanded(bound.trained_values, len(next(iter(previous.values()))))
        start = bound.trained.flatten_columns(started | values_from_previous(bound, previous, anchored=True)).mT
    return lambda point: decay * point + pull * (point - start)


def _cold_start(bound: BoundStage, seed: int, *, follows: bool) -> Params:
    """Initial values of a cold start: new ones, but for anchored parameters, which start where the stage before ended.

    follows: whether these are taken from a stage before that was trained again; they are then left out.
    """
    fresh = reset(bound, seed)
    values = {name: fresh[name] for name in bound.trained.names if name not in bound.anchored_to}
    return values if follows else values | bound.anchored.start


def reset(bound: BoundStage, seed: int) -> Params:
    """Newly drawn values of every parameter, by the modules' own `reset_parameters()`.

    Raises:
        DescriptionError: a module with parameters of its own has no such method.
    """
    model = with_values(bound.stage, {}).model
    owned = set(bound.trained.names) - set(bound.anchored_to)
    device = bound.trained.device
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        for where, module in model.named_modules():
            mine = {f"{where}.{name}" if where else name for name, _ in module.named_parameters(recurse=False)}
            if not mine & owned:
                continue
            again = getattr(module, "reset_parameters", None)
            if not callable(again):
                refuse(
                    f"{bound.stage.where}: a cold start needs reset_parameters() on '{where}' "
                    f"({type(module).__name__}), which has parameters of its own; add it, or use start='warm'"
                )
            again()
    return {name: parameter.detach() for name, parameter in model.named_parameters()}

"""The two stages, trained to strict minima."""

import copy
from dataclasses import dataclass
from typing import final

import torch
from torch.nn import functional as F

from stagetrace import Chain, Frozen, Hessian, Query, Stage
from stagetrace.demo.data import Digits, Splits
from stagetrace.demo.model import Network
from stagetrace.demo.settings import Settings
from stagetrace.errors import SolveError
from stagetrace.objectives import Classification
from stagetrace.progress import Progress
from stagetrace.stages.problem import Problem
from stagetrace.validation import Minimum, polish

ALL = 2048
"""A batch size that takes every digit at once."""


@final
@dataclass(frozen=True)
class Trained:
    """A stage after training: how well, and how strict its minimum is (all eigenvalues of its Hessian are known)."""

    stage: str
    digits: str
    parameters: int
    examples: int
    accuracy: float
    gradient_norm: float
    newton_steps: int
    products: int
    smallest_eigenvalue: float
    largest_eigenvalue: float


def train(splits: Splits, settings: Settings, progress: Progress) -> tuple[Chain, tuple[Trained, ...]]:
    """Pretrain on the old digits, train a new head for the new ones on the kept embedding; both to strict minima.

    Raises:
        SolveError: a stage found no strict minimum.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        first = Network(settings.channels, 4).double()
        second = Network(settings.channels, 6).double()
    _adam(first, splits.old, settings, progress)
    second.embedding = copy.deepcopy(first.embedding)
    rough = Chain(
        _stage("pretrain", first, splits.old, settings.pretrain_decay),
        _stage("finetune", second, splits.new, settings.finetune_decay, Frozen("embedding")),
    )
    ready = polish(rough, tolerance=settings.tolerance, progress=progress)
    names = ("0 to 3", "4 to 9, a new head")
    tests = (splits.old_test, splits.new_test)
    return ready.chain, tuple(
        _trained(problem, ready.minima[problem.name], digits, _accuracy(problem.stage, test))
        for problem, digits, test in zip(ready.chain, names, tests, strict=True)
    )


def _trained(problem: Problem, minimum: Minimum, digits: str, accuracy: float) -> Trained:
    eigenvalues = torch.linalg.eigvalsh(Hessian().operator(problem).to_dense())
    smallest, largest = float(eigenvalues[0]), float(eigenvalues[-1])
    if smallest <= 0:
        raise SolveError(f"{problem.stage.where}: the Hessian has the eigenvalue {smallest:.1e}, so no strict minimum")
    return Trained(
        stage=problem.name,
        digits=digits,
        parameters=problem.own.size,
        examples=len(problem.stage.examples),
        accuracy=accuracy,
        gradient_norm=minimum.gradient_norm,
        newton_steps=minimum.steps,
        products=minimum.products,
        smallest_eigenvalue=smallest,
        largest_eigenvalue=largest,
    )


def query_of(splits: Splits) -> Query:
    """The mean loss of the fine-tuned model on the test digits."""
    return Query(splits.new_test.data, batch_size=ALL)


def _stage(name: str, model: Network, digits: Digits, decay: float, link: Frozen | None = None) -> Stage:
    return Stage(
        name,
        model=model,
        objective=Classification(),
        data=digits.data,
        link=link,
        weight_decay=decay,
        batch_size=ALL,
    )


def _adam(model: Network, digits: Digits, settings: Settings, progress: Progress) -> None:
    """Towards a minimum; Newton does the rest."""
    adam = torch.optim.Adam(model.parameters(), lr=0.03)
    with progress.task("pretraining by Adam", settings.adam_steps, "steps") as advance:
        for _ in range(settings.adam_steps):
            adam.zero_grad()
            penalty = sum(parameter.square().sum() for parameter in model.parameters())
            loss = F.cross_entropy(model(digits.images), digits.digits - digits.first)
            (loss + settings.pretrain_decay / 2 * penalty).backward()
            adam.step()
            advance(1)


def _accuracy(stage: Stage, digits: Digits) -> float:
    with torch.no_grad():
        guesses = stage.model(digits.images).argmax(dim=1) + digits.first
    return float((guesses == digits.digits).double().mean())

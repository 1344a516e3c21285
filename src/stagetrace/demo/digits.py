"""What the demo trains: real digits from scikit-learn (8 x 8 pixels, nothing to download), and two stages on them."""

import copy
from dataclasses import dataclass
from importlib import import_module
from typing import final

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

from stagetrace import Chain, Frozen, Hessian, Query, Stage
from stagetrace.errors import DescriptionError, SolveError, refuse
from stagetrace.objectives import Classification
from stagetrace.progress import Progress
from stagetrace.stages.bound import BoundStage
from stagetrace.validation import polish
from stagetrace.validation.minimum import Minimum


@final
@dataclass(frozen=True)
class Settings:
    """Sizes, penalties and seed. Weight decay is what makes both minima strict, and so the scores well defined.

    pretrain_examples: of the digits 0 to 3, finetune_examples: of 4 to 9; the rest of each tests.
    channels: of the two convolutions.
    pretrain_decay, finetune_decay: weight decay of the two stages.
    adam_steps: full-batch steps before Newton takes over.
    shown: digits in each table; largest, random: scores checked by solving again; the random ones are drawn by the
        seed before there are scores.
    """

    pretrain_examples: int = 600
    finetune_examples: int = 600
    channels: tuple[int, int] = (4, 8)
    pretrain_decay: float = 0.01
    finetune_decay: float = 0.001
    adam_steps: int = 200
    tolerance: float = 1e-9
    shown: int = 6
    largest: int = 10
    random: int = 12
    seed: int = 0


@final
@dataclass(frozen=True, eq=False)
class Digits:
    """Images `[n, 1, 8, 8]` in float64 from 0 (white) to 1, and the digits they show `[n]`; `first` is label 0."""

    images: Tensor
    digits: Tensor
    first: int

    @property
    def data(self) -> TensorDataset:
        """Pairs of an image and its label, which counts from `first`; `classes` says which digit a label is."""
        data = TensorDataset(self.images, self.digits - self.first)
        data.classes = [f"digit {digit}" for digit in range(self.first, 10)]  # pyright: ignore[reportAttributeAccessIssue]
        return data

    def __len__(self) -> int:
        return len(self.digits)


@final
@dataclass(frozen=True)
class Splits:
    """What each stage trains on, and what tests it."""

    old: Digits
    old_test: Digits
    new: Digits
    new_test: Digits


def load(settings: Settings) -> Splits:
    """0 to 3 for pretraining, 4 to 9 for fine-tuning, each in an order drawn by the seed.

    Raises:
        DescriptionError: scikit-learn is not installed, or more examples are asked for than there are.
    """
    try:
        datasets = import_module("sklearn.datasets")
    except ImportError as cause:
        raise DescriptionError(
            "the demo needs the digits that scikit-learn brings along; type: pip install 'stagetrace[demo]'"
        ) from cause
    bundle = datasets.load_digits()
    images = torch.from_numpy(bundle.images).double().unsqueeze(1) / 16
    digits = torch.from_numpy(bundle.target).long()
    order = torch.randperm(len(digits), generator=torch.Generator().manual_seed(settings.seed))
    images, digits = images[order], digits[order]
    old, new = digits < 4, digits >= 4
    return Splits(
        *_split(images[old], digits[old], 0, settings.pretrain_examples),
        *_split(images[new], digits[new], 4, settings.finetune_examples),
    )


def _split(images: Tensor, digits: Tensor, first: int, examples: int) -> tuple[Digits, Digits]:
    if not 0 < examples < len(digits):
        refuse(
            f"demo: the digits from {first} on are {len(digits)}; type 1 to {len(digits) - 1} examples, got {examples}"
        )
    return Digits(images[:examples], digits[:examples], first), Digits(images[examples:], digits[examples:], first)


@final
class Convolution(nn.Module):
    """3 x 3, stride 2, padding 1, as a matrix product of patches: in float64 on a CPU several times faster."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(9 * inputs, outputs) / (9 * inputs) ** 0.5)
        self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(self, images: Tensor) -> Tensor:
        """`[n, inputs, side, side]` -> `[n, outputs, side / 2, side / 2]`."""
        patches = F.pad(images, (1, 1, 1, 1)).unfold(2, 3, 2).unfold(3, 3, 2)  # [n, inputs, side / 2, side / 2, 3, 3]
        columns = patches.permute(0, 2, 3, 1, 4, 5).flatten(3)
        return (columns @ self.weight + self.bias).permute(0, 3, 1, 2)


@final
class Network(nn.Module):
    """Two convolutions with a tanh after each, and a linear head; smooth, so that second derivatives mean something."""

    def __init__(self, channels: tuple[int, int], classes: int) -> None:
        super().__init__()
        first, second = channels
        self.embedding = nn.Sequential(
            Convolution(1, first), nn.Tanh(), Convolution(first, second), nn.Tanh(), nn.Flatten()
        )
        self.head = nn.Linear(4 * second, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Logits `[n, classes]` of images `[n, 1, 8, 8]`."""
        return self.head(self.embedding(images))


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
        _trained(bound, ready.minima[bound.name], digits, _accuracy(bound.stage, test))
        for bound, digits, test in zip(ready.chain, names, tests, strict=True)
    )


def _trained(bound: BoundStage, minimum: Minimum, digits: str, accuracy: float) -> Trained:
    eigenvalues = torch.linalg.eigvalsh(Hessian().operator(bound).to_dense())
    smallest, largest = float(eigenvalues[0]), float(eigenvalues[-1])
    if smallest <= 0:
        raise SolveError(f"{bound.stage.where}: the Hessian has the eigenvalue {smallest:.1e}, so no strict minimum")
    return Trained(
        stage=bound.name,
        digits=digits,
        parameters=bound.trained.size,
        examples=len(bound.stage.examples),
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

"""The real digits that scikit-learn brings along: 1,797 handwritten ones of 8 x 8 pixels, nothing to download."""

from dataclasses import dataclass
from importlib import import_module
from typing import final

import torch
from torch import Tensor
from torch.utils.data import TensorDataset

from stagetrace.demo.settings import Settings
from stagetrace.errors import DescriptionError, refuse


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

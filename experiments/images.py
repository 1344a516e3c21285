"""Images and labels as tensors, from a folder in the Hugging Face layout.

The folder is what `datasets.load_dataset` reads: Parquet files named by split (or folders of picture files), with one
column of images and one of whole-number labels. The column names are the data set's own business.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import TensorDataset

from experiments.folders import open_split
from stagetrace.errors import DataError

GREY = ("1", "L", "I", "I;16", "F")
"""Pillow's names for pictures of one channel."""


@final
@dataclass(frozen=True)
class Images:
    """Some rows of one split.

    pixels: float32 `[n, channels, height, width]`, 0 (black) to 1.
    labels: int64 `[n]`.
    rows: int64 `[n]`, the examples' places in the split, ascending.
    """

    pixels: Tensor
    labels: Tensor
    rows: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, chosen: Tensor) -> "Images":
        return Images(self.pixels[chosen], self.labels[chosen], self.rows[chosen])

    def drawn(self, count: int | None, seed: int) -> "Images":
        """At most `count` of them, drawn without replacement, in the data set's order."""
        order = torch.randperm(len(self), generator=torch.Generator().manual_seed(seed))
        return self if count is None or count >= len(self) else self[order[:count].sort().values]

    def to(self, device: torch.device) -> "Images":
        return Images(self.pixels.to(device), self.labels.to(device), self.rows)

    @property
    def dataset(self) -> TensorDataset:
        """As `(pixels, label)` examples."""
        return TensorDataset(self.pixels, self.labels)


def read_images(folder: Path, split: str) -> Images:
    """Every image of a split.

    Raises:
        DataError: no data set, split or column of that kind, or pictures of several sizes.
    """
    table, image, label = _open(folder, split)
    labels = torch.tensor(list(table[label]), dtype=torch.int64)
    pictures = list(table[image])
    mode = "L" if pictures[0].mode in GREY else "RGB"
    sizes = {picture.size for picture in pictures}
    if len(sizes) > 1:
        some = ", ".join(f"{width}x{height}" for width, height in sorted(sizes)[:3])
        raise DataError(f"{folder}: the images of '{split}' have several sizes ({some}); resize them to one")
    stacked = torch.from_numpy(np.stack([np.asarray(picture.convert(mode)) for picture in pictures]))
    channels = stacked.unsqueeze(1) if stacked.ndim == 3 else stacked.permute(0, 3, 1, 2)
    return Images(channels.float().div(255).contiguous(), labels, torch.arange(len(labels)))


def class_names(folder: Path, split: str) -> list[str]:
    """What the data set calls its classes, in the order of their numbers; empty if it has numbers only."""
    table, _, label = _open(folder, split)
    return list(getattr(table.features[label], "names", None) or [])


def _open(folder: Path, split: str) -> tuple[Any, str, str]:
    """The split, and the names of its columns of images and of labels."""
    table = open_split(folder, split)
    kinds = {name: type(feature).__name__ for name, feature in table.features.items()}
    images = [name for name, kind in kinds.items() if kind == "Image"]
    labels = [name for name, kind in kinds.items() if kind == "ClassLabel"] or [
        name for name in kinds if name == "label"
    ]
    if not images or not labels:
        found = ", ".join(f"{name} ({kind})" for name, kind in kinds.items())
        raise DataError(
            f"{folder}: '{split}' needs a column of images and one of labels (ClassLabel, or 'label'); it has {found}"
        )
    return table, images[0], labels[0]

"""Batches of texts with images: an example may have several images, or none."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
import torch.nn.functional as F
from torch import Tensor

from stagetrace.errors import DataError
from stagetrace.hf.collate import Collation, collation_of
from stagetrace.hf.signature import reads_images
from stagetrace.hf.task import Task

TOLD = ("image_sizes", "pixel_attention_mask")
"""Features from which a model knows how much of an image is padding."""


def of_images(name: str) -> bool:
    """Whether a feature is one of images or of frames: it has an entry for each of them, or for each patch."""
    return name.startswith(("pixel", "image", "video"))


@final
@dataclass(frozen=True)
class Concatenated:
    """Puts the images of all examples one behind the other, as vision-language models take them.

    inner: collates everything else.
    """

    inner: Collation

    def __call__(self, examples: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """`{feature: [batch, length]}` of texts, and `[images, ...]` or `[patches, ...]` of images.

        Raises:
            DataError: images of unequal size of a model that is not told so.
        """
        batch = self.inner([{name: each[name] for name in each if not of_images(name)} for each in examples])
        images = list(map(_images_of, examples))
        told = any(name in each for each in images for name in TOLD)
        for name in dict.fromkeys(name for each in images for name in each):
            batch[name] = _behind(name, [each[name] for each in images if name in each], told=told)
        return batch


def collated_by(model: Any, tokenizer: Any, task: Task, where: str) -> Collation | Concatenated:
    """As `collation_of`; of a model that reads images among its tokens, with their features one behind the other."""
    found = collation_of(model, tokenizer, task, where)
    return Concatenated(found) if reads_images(model) else found


def _images_of(example: Mapping[str, Any]) -> dict[str, Tensor]:
    """An example's features of images; those of one image by itself get the axis of images."""
    found = {name: torch.as_tensor(example[name]) for name in example if of_images(name)}
    alone = "pixel_values" in found and found["pixel_values"].ndim == 3
    return {name: value.unsqueeze(0) for name, value in found.items()} if alone else found


def _behind(name: str, values: list[Tensor], *, told: bool) -> Tensor:
    shapes = list(dict.fromkeys(tuple(value.shape[1:]) for value in values))
    if len(shapes) == 1:
        return torch.cat(values)
    if not told or len({len(shape) for shape in shapes}) > 1:
        some = " and ".join(str(list(shape)) for shape in shapes[:2])
        raise DataError(
            f"'{name}' has another size in some examples ({some}), and the model is not told what would be padding; "
            "give all images the same size, or the stage batch_size=1"
        )
    largest = [max(sizes) for sizes in zip(*shapes, strict=True)]
    return torch.cat([_filled(value, largest) for value in values])


def _filled(value: Tensor, sizes: Sequence[int]) -> Tensor:
    """Zeros behind a tensor's axes but the first, up to these sizes."""
    pads = [(0, size - have) for size, have in zip(sizes, value.shape[1:], strict=True)]
    return F.pad(value, [one for pair in reversed(pads) for one in pair])

"""Images of any common kind as small PNGs. pillow is loaded when there is an image."""

import importlib.util
from collections.abc import Sequence
from io import BytesIO
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import Tensor

from stagetrace.report.encoded import content_of, is_file_of_row, kind_of

if TYPE_CHECKING:
    from PIL.Image import Image

LARGEST = 96
"""Pixels of the longer side of a preview."""

_CHANNELS = (1, 3, 4)
_SMALLEST_SIDE = 4


def available() -> bool:
    """Whether pillow is installed."""
    return importlib.util.find_spec("PIL") is not None


def is_picture(value: Any) -> bool:
    """Whether a value can be shown: an image of pillow, a file, or an array `[h, w]`, `[c, h, w]` or `[h, w, c]`.

    Integers other than bytes are token ids or labels, and an array without a channel axis must be 8 by 8 at least:
    smaller ones are features more often than pixels.
    """
    if type(value).__module__.startswith("PIL.") and hasattr(value, "thumbnail"):
        return True
    if is_file_of_row(value):
        return kind_of(content_of(value)) == "picture"
    if not isinstance(value, Tensor | np.ndarray):
        return False
    if isinstance(value, np.ndarray) and value.dtype.kind not in "biufc":
        return False
    array = torch.as_tensor(value)
    if not (array.is_floating_point() or array.dtype == torch.uint8):
        return False
    shape = tuple(array.shape)
    if len(shape) == 2:
        return min(shape) >= 2 * _SMALLEST_SIDE
    return len(shape) == 3 and _channel_axis(shape) is not None


def pictures_of(value: Any) -> list[Any]:
    """The pictures that a value holds: itself, those of a list, or of an array `[n, ...]` of them; none of others."""
    if isinstance(value, list | tuple):
        found = [each for each in cast("Sequence[Any]", value) if each is not None]
        return found if all(map(is_picture, found)) else []
    if isinstance(value, Tensor | np.ndarray) and value.ndim == 4 and len(value):
        return list(value) if is_picture(value[0]) else []
    return [value] if is_picture(value) else []


def png(value: Any) -> bytes:
    """The image as PNG, no side longer than 96 pixels; small images keep their pixels.

    Numbers from 0 to 1 and bytes are taken as they are, numbers up to 255 as bytes; all others are stretched, since
    data is often standardised: the smallest becomes black and the largest white.
    """
    if isinstance(value, Tensor | np.ndarray):
        image = _image(value)
    else:
        image = _opened(value) if is_file_of_row(value) else value.copy()
    if image.mode.startswith(("I", "F")):  # numbers that are no bytes
        image = _image(np.asarray(image, dtype=np.float64))
    if image.mode not in ("L", "RGB", "RGBA"):
        image = image.convert("RGBA" if "A" in image.mode or "transparency" in image.info else "RGB")
    image.thumbnail((LARGEST, LARGEST))
    written = BytesIO()
    image.save(written, format="PNG", optimize=True)
    return written.getvalue()


def is_png(content: bytes, largest: int) -> bool:
    """Whether bytes begin as a PNG of sides within `largest` pixels does: a picture that is safe to have drawn."""
    if content[:8] != b"\x89PNG\r\n\x1a\n" or content[12:16] != b"IHDR" or len(content) < 24:
        return False
    sides = int.from_bytes(content[16:20]), int.from_bytes(content[20:24])
    return all(0 < side <= largest for side in sides)


def _opened(value: Any) -> "Image":
    """A file's image, upright."""
    from PIL import Image, ImageOps

    image = Image.open(BytesIO(content_of(value)))
    image.draft("RGB", (2 * LARGEST, 2 * LARGEST))  # of a photograph no more is decoded than is shown
    return ImageOps.exif_transpose(image)


def _image(value: Any) -> "Image":
    from PIL import Image

    array = torch.as_tensor(value).detach().cpu()
    if array.ndim == 3 and (axis := _channel_axis(tuple(array.shape))) is not None:
        array = array.movedim(axis, -1)
        array = array[..., 0] if array.shape[-1] == 1 else array
    return Image.fromarray(np.ascontiguousarray(_bytes(array).numpy()))


def _bytes(array: Tensor) -> Tensor:
    if array.dtype == torch.uint8:
        return array
    array = torch.nan_to_num(array.double())
    low, high = float(array.min()), float(array.max())
    if low < 0 or high > 255:
        array = (array - low) / ((high - low) or 1.0)
    elif high > 1:
        array = array / 255
    return (array * 255).round().to(torch.uint8)


def _channel_axis(shape: tuple[int, ...]) -> int | None:
    """The axis of the channels: the first, as in PyTorch, if it can be; else the last."""
    for axis, sides in ((0, shape[1:]), (2, shape[:2])):
        if shape[axis] in _CHANNELS and min(sides) >= _SMALLEST_SIDE:
            return axis
    return None

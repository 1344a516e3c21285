"""An image as data sets hold it -> the features of an image processor."""

import io
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, final

import numpy as np

from stagetrace.errors import DataError, first_line
from stagetrace.hf.modal.cells import IMAGES, array_of, bytes_of, column_of, is_image
from stagetrace.hf.modal.media import Row, cell, replaced
from stagetrace.hf.packages import is_of


@final
@dataclass(frozen=True, eq=False)
class Images:
    """Reads a column of images by an image processor of transformers, one image at a time.

    What is done to images of other modes (grey, with transparency, of 16 bits) is what the processor does.

    Raises:
        DataError: an image cannot be read; with the example's index.
    """

    column: str
    processor: Any

    def __call__(self, row: Row, index: int, where: str) -> dict[str, Any]:
        value = cell(row, self.column, index, where)
        where = f"{where}: '{self.column}' of example {index}"
        image = read_image(value, where)
        try:
            found = self.processor(images=image, return_tensors="pt")
        except Exception as cause:  # whatever a processor raises for a mode, shape or file that it does not know
            raise DataError(
                f"{where} ({_described(image)}) is not read by {type(self.processor).__name__} ({first_line(cause)}); "
                "convert it as in training, e.g. image.convert('RGB')"
            ) from cause
        return replaced(row, self.column, found)

    def of(self, row: Row, where: str) -> "Images":
        column = self.column if self.column in row else column_of(row, IMAGES, is_image, "image", "pixel_values", where)
        return replace(self, column=column)


def read_image(value: Any, where: str) -> Any:
    """An image of PIL, or an array: what the image processors of transformers take.

    Files are opened as `datasets.Image` opens them: turned upright where their metadata say so.

    Raises:
        DataError: no image, or a broken file.
    """
    if is_of(value, "PIL", "Image"):
        return value
    content = bytes_of(value, where)
    if content is not None:
        return _opened(content, where)
    array: Any = array_of(value) if isinstance(value, (list, tuple)) else value
    if len(getattr(array, "shape", ())) not in (2, 3):
        got = f"an array of shape {list(array.shape)}" if getattr(array, "shape", ()) else f"{type(value).__name__}"
        raise DataError(
            f"{where} is no image but {got}; give an image of PIL, an array of height, width and colours, a path, or "
            "the bytes of a file"
        )
    if isinstance(value, (list, tuple)) and array.dtype.kind == "i" and array.min() >= 0 and array.max() <= 255:
        return array.astype(np.uint8)  # pixels that were stored as numbers
    return array


def brightness_notices(row: Mapping[str, Any], images: Images, where: str) -> list[str]:
    """A sentence where the first image is divided by 255 a second time."""
    image = read_image(row[images.column], f"{where}: '{images.column}' of example 0")
    divides = getattr(images.processor, "do_rescale", False)
    if not divides or is_of(image, "PIL", "Image") or not re.search("float|bool", str(image.dtype)):
        return []
    if not math.prod(image.shape) or float(image.max()) > 1:
        return []
    return [
        f"{where}: the values of '{images.column}' are between 0 and 1, and {type(images.processor).__name__} "
        "divides them by 255 again; if training did not, give processor= with do_rescale=False"
    ]


def _opened(content: bytes, where: str) -> Any:
    from PIL import Image, ImageOps

    try:
        image = Image.open(io.BytesIO(content))
        image.load()
        return ImageOps.exif_transpose(image)
    except Exception as cause:  # whatever a broken file makes PIL raise
        raise DataError(
            f"{where} is no image file that can be read ({first_line(cause)}); leave the example out"
        ) from cause


def _described(image: Any) -> str:
    if is_of(image, "PIL", "Image"):
        return f"an image of mode {image.mode}, {image.width} x {image.height} pixels"
    return f"an array of shape {list(image.shape)}, {image.dtype}"

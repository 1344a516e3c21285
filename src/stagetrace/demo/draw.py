"""Digits in a terminal: half blocks, two pixels a character, so that pixels come out square."""

from collections.abc import Sequence

from rich.table import Table
from rich.text import Text
from torch import Tensor

INKED = 0.4
"""Ink above which a pixel is drawn."""


def drawing(image: Tensor) -> Text:
    """An image `[height, width]` from 0 to 1 (ink); eight rows of pixels make four lines.

    Example:
        >>> print(drawing(Tensor([[1.0, 0.0, 1.0], [1.0, 1.0, 0.0]])))
        █▄▀
    """
    rows: list[list[float]] = image.tolist()
    pairs = [[(a > INKED, b > INKED) for a, b in zip(*rows[n : n + 2], strict=True)] for n in range(0, len(rows), 2)]
    shapes = {(False, False): " ", (True, False): "▀", (False, True): "▄", (True, True): "█"}
    return Text("\n".join("".join(shapes[pair] for pair in line) for line in pairs), no_wrap=True)


def side_by_side(title: str, images: Sequence[Tensor], captions: Sequence[str]) -> Table:
    """Digits in a row, their captions below."""
    table = Table(
        title=Text(title, style="bold"), title_justify="left", box=None, show_header=False, padding=(0, 2, 0, 0)
    )
    for _ in images:
        table.add_column(justify="left", no_wrap=True)
    table.add_row(*(drawing(image) for image in images))
    table.add_row(*(Text(caption) for caption in captions))
    return table

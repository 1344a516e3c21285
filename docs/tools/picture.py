"""The picture of the method: `python -m docs.tools.picture [--out FOLDER]` draws it for light and for dark pages."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, final

import matplotlib.pyplot as plt
import typer
from matplotlib.axes import Axes
from matplotlib.patches import FancyBboxPatch

FOLDER = Path(__file__).parents[1] / "figures"
LEFT, MIDDLE, RIGHT = 1.75, 5.6, 8.75
TRAINING, BACKWARD, SCORES = 7.5, 4.2, 1.45


@final
@dataclass(frozen=True)
class Colours:
    """Ink on the page, and of each kind of box its edge and filling."""

    ink: str
    forward: tuple[str, str]
    back: tuple[str, str]
    scores: tuple[str, str]


PAGES = {
    "light": Colours("#1b1f24", ("#57606a", "#f3f4f6"), ("#0550ae", "#e3effd"), ("#9a4a00", "#fdf0e0")),
    "dark": Colours("#e6e6e6", ("#9aa4af", "#2a2e33"), ("#79b8ff", "#14304f"), ("#f0a860", "#46300f")),
}


def drawn(out: Path) -> list[Path]:
    """Both pictures, as `method-light.svg` and `method-dark.svg`; the same bytes each time."""
    return on_both_pages(out, "method", (0.5, 9.1), _draw)


def on_both_pages(
    out: Path, name: str, heights: tuple[float, float], draw: Callable[[Axes, Colours], None]
) -> list[Path]:
    """A picture for light and for dark pages, `NAME-PAGE.svg`; 10 wide, between two heights."""
    out.mkdir(parents=True, exist_ok=True)
    paths = {page: out / f"{name}-{page}.svg" for page in PAGES}
    for page, colours in PAGES.items():
        with plt.rc_context({"svg.hashsalt": "stagetrace", "font.size": 11, "text.color": colours.ink}):
            figure, axes = plt.subplots(figsize=(6.9, 5.9))
            axes.set(xlim=(0, 10), ylim=heights)
            axes.axis("off")
            draw(axes, colours)
            figure.subplots_adjust(left=0.01, right=0.99, bottom=0.01, top=0.99)
            figure.savefig(paths[page], transparent=True, metadata={"Date": None, "Creator": None})
            plt.close(figure)
    return list(paths.values())


def _draw(axes: Axes, colours: Colours) -> None:
    _training(axes, colours)
    _backward(axes, colours)


def _training(axes: Axes, colours: Colours) -> None:
    """The upper row: what happened, from left to right."""
    edge = colours.forward[0]
    axes.text(0.15, 8.6, "training, in order", color=edge, style="italic")
    old = "mean loss of old examples\nleaves parameters $W$"
    new = "mean loss of new examples\nleaves a new head $\\Theta$"
    _box(axes, LEFT, TRAINING, 3.2, colours.forward, "stage 1: pretrain", old)
    _box(axes, MIDDLE, TRAINING, 3.2, colours.forward, "stage 2: fine-tune", new)
    _box(axes, RIGHT, TRAINING, 2.0, colours.forward, "query", "loss $q(W, \\Theta)$\non test data")
    _arrow(axes, (LEFT + 1.6, TRAINING), (MIDDLE - 1.6, TRAINING), edge)
    _arrow(axes, (MIDDLE + 1.6, TRAINING), (RIGHT - 1.0, TRAINING), edge)
    axes.text((LEFT + MIDDLE) / 2, TRAINING + 0.15, "link", color=edge, ha="center", size=10)


def _backward(axes: Axes, colours: Colours) -> None:
    """The middle row: the backward pass, from right to left, and below it the scores on the way."""
    edge, ranked = colours.back[0], colours.scores[0]
    axes.text(0.15, 6.05, "the backward pass: one solve per stage", color=edge, style="italic")
    _box(axes, LEFT, BACKWARD, 3.2, colours.back, "solve", "$H_1\\, \\lambda_1 = g_1$\n$H_1$: curvature of stage 1")
    _box(axes, MIDDLE, BACKWARD, 3.2, colours.back, "solve", "$H_2\\, \\lambda_2 = g_2$\n$H_2$: curvature of stage 2")
    _box(axes, RIGHT, BACKWARD, 2.0, colours.back, "gradient", "$g_2 = \\partial q / \\partial \\Theta$")
    _arrow(axes, (RIGHT, TRAINING - 0.8), (RIGHT, BACKWARD + 0.8), edge)
    _arrow(axes, (RIGHT - 1.0, BACKWARD), (MIDDLE + 1.6, BACKWARD), edge)
    _arrow(axes, (MIDDLE - 1.6, BACKWARD), (LEFT + 1.6, BACKWARD), edge)
    coupling = "(\\partial^2 F_2 / \\partial W \\partial \\Theta)\\, \\lambda_2"
    pulled = f"pull back: $g_1 = \\partial q / \\partial W - {coupling}$"
    axes.text((LEFT + MIDDLE) / 2, BACKWARD + 1.3, pulled, color=edge, ha="center", va="center", size=10.5)
    axes.plot([(LEFT + MIDDLE) / 2] * 2, [BACKWARD + 1.05, BACKWARD + 0.12], color=edge, linewidth=0.8)
    for centre, which, number in ((LEFT, "old", 1), (MIDDLE, "new", 2)):
        _arrow(axes, (centre, BACKWARD - 0.8), (centre, SCORES + 0.8), ranked)
        words = f"score$_i = -\\nabla \\ell_i \\cdot \\lambda_{number}$\n+ harmful, − helpful"
        _box(axes, centre, SCORES, 3.2, colours.scores, f"scores of {which} examples", words)
    axes.text(RIGHT, SCORES, "unit:\nquery loss", color=ranked, ha="center", va="center")


def _box(axes: Axes, x: float, y: float, width: float, colours: tuple[str, str], title: str, words: str) -> None:
    edge, filling = colours
    shape = "round,pad=0,rounding_size=0.12"
    corner = x - width / 2, y - 0.8
    axes.add_patch(FancyBboxPatch(corner, width, 1.6, boxstyle=shape, edgecolor=edge, facecolor=filling, linewidth=1.3))
    axes.text(x, y + 0.48, title, ha="center", va="center", weight="bold", size=11)
    axes.text(x, y - 0.2, words, ha="center", va="center", size=10, linespacing=1.5)


def _arrow(axes: Axes, start: tuple[float, float], end: tuple[float, float], colour: str) -> None:
    style = {"arrowstyle": "-|>", "color": colour, "linewidth": 1.6, "shrinkA": 2, "shrinkB": 2}
    axes.annotate("", xy=end, xytext=start, arrowprops=style)


def main(out: Annotated[Path, typer.Option(help="Where the two SVG files go.")] = FOLDER) -> None:
    """Draw the picture of the method."""
    for path in drawn(out):
        typer.echo(f"written: {path}")


if __name__ == "__main__":
    typer.run(main)

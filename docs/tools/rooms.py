"""The picture of the code: `python -m docs.tools.rooms [--out FOLDER]` draws it for light and for dark pages."""

from pathlib import Path
from typing import Annotated

import typer
from matplotlib.axes import Axes
from matplotlib.patches import FancyBboxPatch

from docs.tools.picture import FOLDER, Colours, on_both_pages

WIDTH, HEIGHT = 2.15, 1.15
ROOMS: dict[str, tuple[float, float, str, str]] = {
    "hf, corpora": (1.25, 7.6, "forward", "models of transformers,\nfiles and streams as data"),
    "objectives": (3.75, 7.6, "forward", "outputs and losses,\none per example"),
    "stages": (6.25, 7.6, "forward", "what was trained on what,\nlinks, the chain"),
    "checks": (8.75, 7.6, "forward", "is the derivative one?\nrefuse or say"),
    "taps, curvature": (3.75, 5.35, "back", "products with H or G,\nEK-FAC, the coupling"),
    "solvers": (6.25, 5.35, "back", "System -> Solution,\nvectors only"),
    "recording, replay": (8.75, 5.35, "back", "training as it ran,\nrun backwards"),
    "tracing, index": (5.0, 3.1, "back", "query, backward pass, scores;\na store to search"),
    "preflight": (1.25, 3.1, "back", "look first: cost,\nminimum, spectrum"),
    "validation, reweighting": (8.75, 3.1, "scores", "train again: compare, or\nweigh the examples"),
    "results": (5.0, 0.95, "scores", "scores, and the folder\nof a run"),
    "report, why": (1.25, 0.95, "scores", "one HTML file;\none answer explained"),
    "curate, export": (8.75, 0.95, "scores", "the next data set,\nother tools' formats"),
}
ARROWS = (
    ("hf, corpora", "objectives"),
    ("objectives", "stages"),
    ("stages", "checks"),
    ("stages", "taps, curvature"),
    ("taps, curvature", "solvers"),
    ("taps, curvature", "tracing, index"),
    ("solvers", "tracing, index"),
    ("recording, replay", "tracing, index"),
    ("tracing, index", "preflight"),
    ("tracing, index", "validation, reweighting"),
    ("tracing, index", "results"),
    ("results", "report, why"),
    ("results", "curate, export"),
)


def drawn(out: Path) -> list[Path]:
    """Both pictures, as `rooms-light.svg` and `rooms-dark.svg`; the same bytes each time."""
    return on_both_pages(out, "rooms", (0.2, 8.9), _draw)


def _draw(axes: Axes, colours: Colours) -> None:
    for start, end in ARROWS:
        _arrow(axes, start, end, colours.ink)
    for name, (x, y, kind, words) in ROOMS.items():
        _room(axes, (x, y), getattr(colours, kind), name, words)
    axes.text(0.15, 8.6, "what the user describes", color=colours.forward[0], style="italic")
    axes.text(0.15, 6.35, "the method", color=colours.back[0], style="italic")
    axes.text(0.15, 1.85, "what comes out", color=colours.scores[0], style="italic")


def _room(axes: Axes, centre: tuple[float, float], colours: tuple[str, str], name: str, words: str) -> None:
    (x, y), (edge, filling) = centre, colours
    corner, shape = (x - WIDTH / 2, y - HEIGHT / 2), "round,pad=0,rounding_size=0.12"
    axes.add_patch(
        FancyBboxPatch(corner, WIDTH, HEIGHT, boxstyle=shape, edgecolor=edge, facecolor=filling, linewidth=1)
    )
    size = 10 if len(name) < 20 else 7.5
    axes.text(x, y + 0.33, name, ha="center", va="center", weight="bold", size=size)
    axes.text(x, y - 0.17, words, ha="center", va="center", size=7.5, linespacing=1.4)


def _arrow(axes: Axes, start: str, end: str, colour: str) -> None:
    """From the middle of one room to the next, under both."""
    style = {"arrowstyle": "-|>", "color": colour, "linewidth": 1.1, "shrinkA": 0, "shrinkB": 0}
    (x, y), (to_x, to_y) = ROOMS[start][:2], ROOMS[end][:2]
    across, along = to_x - x, to_y - y
    step = min(WIDTH / 2 / abs(across) if across else 9.0, HEIGHT / 2 / abs(along) if along else 9.0)
    tip = to_x - step * across, to_y - step * along
    axes.annotate("", xy=tip, xytext=(x + step * across, y + step * along), arrowprops=style)


def main(out: Annotated[Path, typer.Option(help="Where the two SVG files go.")] = FOLDER) -> None:
    """Draw the picture of the code."""
    for path in drawn(out):
        typer.echo(f"written: {path}")


if __name__ == "__main__":
    typer.run(main)

"""Pictures of scores, on matplotlib, which is loaded when one is drawn."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final, final

import numpy as np
from torch import Tensor

from stagetrace.errors import DescriptionError
from stagetrace.results.sign import UNIT

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BINS = 60
_CROWDED = 100
"""Examples in the fullest bin from which counts are drawn on a logarithmic axis, so that single ones stay seen."""


@final
@dataclass(frozen=True)
class Palette:
    """Colours that any colour vision tells apart, also by lightness; the words and the hatching say the same."""

    harmful: str = "#A33A06"
    helpful: str = "#4A9FDB"
    ink: str = "#444444"
    paper: str = "none"


PALETTE: Final = Palette()


def draw_scores(ax: "Axes", values: Tensor, palette: Palette = PALETTE) -> None:
    """A histogram of scores `[n_examples]`, positive = harmful; zero is the edge of a bin."""
    counts, edges = histogram(values)
    middles, width = (edges[:-1] + edges[1:]) / 2, float(edges[1] - edges[0])
    harmful = int((values > 0).sum())
    helpful = int((values < 0).sum())
    style: dict[str, Any] = {"width": width, "edgecolor": palette.ink, "linewidth": 0.3}
    above = middles > 0
    ax.bar(middles[~above], counts[~above], color=palette.helpful, **style)
    ax.bar(middles[above], counts[above], color=palette.harmful, hatch="////", **style)
    ax.axvline(0, color=palette.ink, linewidth=1)
    crowded = counts.max() > _CROWDED
    if crowded:
        ax.set_yscale("log")
        ax.yaxis.set_major_formatter(lambda count, _: f"{count:,.0f}" if count >= 1 else "")
        ax.minorticks_off()
    ax.set_ylim(0.5 if crowded else 0, counts.max() ** 1.45 if crowded else counts.max() * 1.45)
    words: dict[str, Any] = {"transform": ax.transAxes, "va": "top", "color": palette.ink, "fontsize": 9}
    n = len(values)
    # a text of its own for each line: an SVG aligns those itself, in whatever letters it is shown
    for height, left, right in (
        (0.99, "← helpful (−)", "harmful (+) →"),
        (0.89, f"{helpful:,} of {n:,} ({helpful / n:.0%})", f"{harmful:,} of {n:,} ({harmful / n:.0%})"),
    ):
        ax.text(0.01, height, left, ha="left", **words)
        ax.text(0.99, height, right, ha="right", **words)
    ax.set_xlabel(f"score ({UNIT}; + harmful, − helpful)", fontsize=9, color=palette.ink)
    ax.set_ylabel("examples (log scale)" if crowded else "examples", fontsize=9, color=palette.ink)
    plain(ax, palette)


def histogram(values: Tensor) -> tuple[Any, Any]:
    """Counts and edges of about 60 bins of equal width, one edge at zero: no bin has both harmful and helpful ones.

    A score of exactly zero is neither; it is counted in the bin on the helpful side.

    Example:
        >>> import torch
        >>> counts, edges = histogram(torch.tensor([-1.0, 0.0, 2.0]).double())
        >>> int(counts.sum()), bool((abs(edges) < 1e-12).any())
        (3, True)
    """
    array = values.detach().cpu().numpy()
    low, high = min(0.0, float(array.min())), max(0.0, float(array.max()))
    width = (high - low) / BINS or 1.0
    first, last = min(math.floor(low / width), -1), max(math.ceil(high / width), 1)
    edges = np.arange(first, last + 1) * width
    # bins are open on the left: (a, b], so that 0 belongs to the helpful side
    places = np.clip(np.ceil(array / width).astype(int) - 1 - first, 0, last - first - 1)
    return np.bincount(places, minlength=last - first), edges


def plain(ax: "Axes", palette: Palette) -> None:
    """An axis with as few lines as possible."""
    ax.set_facecolor(palette.paper)
    ax.spines[["top", "right"]].set_visible(False)
    for side in ("left", "bottom"):
        ax.spines[side].set_color(palette.ink)
    ax.tick_params(colors=palette.ink, labelsize=8, which="both")
    ax.xaxis.get_offset_text().set_color(palette.ink)


def plot_scores(title: str, values: Tensor, ax: "Axes | None") -> "Axes":
    """The histogram of scores `[n_examples]` under a title; see `Scores.plot`."""
    pyplot = _pyplot()
    if ax is None:
        _, ax = pyplot.subplots(figsize=(6.4, 3.2), layout="constrained")
    assert ax is not None
    draw_scores(ax, values)
    ax.set_title(title, fontsize=10)
    return ax


def plot_stages(stages: Mapping[str, Tensor]) -> "Figure":
    """A histogram for each title and its scores `[n_examples]`; see `Trace.plot`."""
    pyplot = _pyplot()
    figure, axes = pyplot.subplots(
        len(stages), 1, figsize=(6.4, 2.8 * len(stages)), layout="constrained", squeeze=False
    )
    for ax, (title, values) in zip(axes[:, 0], stages.items(), strict=True):
        plot_scores(title, values, ax)
    pyplot.close(figure)  # a notebook draws what is returned; an open figure would be drawn a second time
    return figure


def _pyplot() -> Any:
    try:
        return import_module("matplotlib.pyplot")
    except ImportError as cause:
        raise DescriptionError(
            "plot() needs matplotlib, which is not installed; type: pip install 'stagetrace[report]'"
        ) from cause

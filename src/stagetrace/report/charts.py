"""Charts as inline SVG, in colours that follow the page from light to dark."""

import re
from html import escape
from io import StringIO
from typing import TYPE_CHECKING

from stagetrace.plaintext import printable
from stagetrace.report.model import StageView
from stagetrace.results.plot import Palette, draw_scores, plain

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Colours that nothing else has: each becomes a variable of the page's style sheet.
_COLOURS = {"#010101": "var(--ink)", "#020202": "var(--harmful)", "#030303": "var(--helpful)"}
PALETTE = Palette(harmful="#020202", helpful="#030303", ink="#010101")
WIDTH, HEIGHT = 4.5, 2.3
"""Inches of 72 points: narrow enough that the letters stay legible on a phone."""


LARGEST = 1e200
"""What can be drawn: matplotlib multiplies numbers with each other."""


def available() -> bool:
    """Whether matplotlib is installed."""
    from stagetrace.validation import plots

    return plots.available()


def scores_chart(stage: StageView) -> str:
    """The histogram of a stage's scores."""
    if float(stage.scores.per_example.abs().max()) > LARGEST:
        return '<p class="small">Scores of this size cannot be drawn.</p>'
    figure, ax = _axes(HEIGHT)
    draw_scores(ax, stage.scores.per_example, PALETTE)
    n = stage.scores.n_examples
    label = f"Histogram of the scores of stage {stage.name}: {stage.harmful} of {n} examples are harmful."
    return _svg(figure, label, f"scores of {stage.name}")


def spectrum_chart(stage: StageView) -> str:
    """Where the solver saw eigenvalues of the stage's curvature; "" where it saw none."""
    ritz = stage.spectrum
    if not ritz:
        return ""
    from matplotlib.ticker import SymmetricalLogLocator

    figure, ax = _axes(HEIGHT / 2)
    size = max(map(abs, ritz)) or 1.0
    below = [value for value in ritz if value < 0]
    ax.vlines([value for value in ritz if value >= 0], 0, 1, color=PALETTE.helpful, linewidth=1.2)
    ax.vlines(below, 0, 1, color=PALETTE.harmful, linewidth=1.2, linestyle="--")
    # symmetrical logarithmic: eigenvalues span many powers of ten, and may be negative
    smallest = min((abs(value) for value in ritz if abs(value) > 1e-12 * size), default=size)
    threshold = max(smallest, 1e-8 * size)
    ax.set_xscale("symlog", linthresh=threshold)
    ticks = SymmetricalLogLocator(base=10, linthresh=threshold)
    ticks.set_params(numticks=6)
    ax.xaxis.set_major_locator(ticks)
    ax.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    ax.minorticks_off()
    ax.set_yticks([])
    words = f", {len(below)} below 0 (dashed)" if below else ", none below 0"
    ax.set_xlabel(f"estimated eigenvalues of the curvature{words}", fontsize=9, color=PALETTE.ink)
    plain(ax, PALETTE)
    ax.spines["left"].set_visible(False)
    label = f"Eigenvalue estimates of stage {stage.name} from {ritz[0]:.3g} to {ritz[-1]:.3g}{words}."
    return _svg(figure, label, f"spectrum of {stage.name}")


def _axes(height: float) -> "tuple[Figure, Axes]":
    """A figure with margins in inches: letting matplotlib find them takes as long as all the drawing."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, height), facecolor="none")
    left, right, bottom, top = 0.6, 0.1, 0.45, 0.08
    box = left / WIDTH, bottom / height, 1 - (left + right) / WIDTH, 1 - (bottom + top) / height
    return figure, figure.add_axes(box)


def _svg(figure: "Figure", label: str, salt: str) -> str:
    """The figure as an SVG element that says in words what it shows; the same figure gives the same text."""
    from matplotlib import rc_context

    written = StringIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": salt, "hatch.linewidth": 0.4}):
        figure.savefig(written, format="svg", transparent=True)
    text = written.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    used = set(re.findall(r"(?:#|url\(#)([\w.-]+)", text))
    text = re.sub(r' id="([\w.-]+)"', lambda found: found[0] if found[1] in used else "", text)
    for colour, variable in _COLOURS.items():
        text = text.replace(colour, variable)
    # as wide as the page lets it be: the picture's own size goes, its viewBox stays
    text = re.sub(r' (?:width|height)="[\d.]+pt"', "", text, count=2)
    return text.replace("<svg", f'<svg role="img" aria-label="{escape(printable(label))}"', 1)

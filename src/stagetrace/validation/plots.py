"""Pictures of a validation: predicted against true, and how the estimators rank. matplotlib is loaded when they are."""

import importlib.util
import math
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from stagetrace.results.files import atomic
from stagetrace.results.sign import UNIT
from stagetrace.validation.validate import Measured, Validation

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Of Okabe and Ito (2008), told apart with any colour vision; shape says the same.
BLUE, ORANGE, GREY = "#0072B2", "#D55E00", "#666666"

SIMILAR = 5.0
"""Axes whose ranges differ by less than this factor share one range."""


def available() -> bool:
    """Whether matplotlib is installed."""
    return importlib.util.find_spec("matplotlib") is not None


def save(validation: Validation, folder: str | Path) -> list[Path]:
    """Write `agreement.png` and `estimators.png`, each whole or not at all.

    Raises:
        ResultsError: the file system refused.
    """
    written: list[Path] = []
    for name, draw in (("agreement.png", agreement), ("estimators.png", estimators)):
        path = Path(folder) / name
        with atomic(path) as temporary:
            draw(validation).savefig(temporary, dpi=150, format="png")
        written.append(path)
    return written


def agreement(validation: Validation) -> "Figure":
    """Predicted against true change of the query loss by the first estimator, a panel for each choice of removals.

    Error bars: the standard error of the mean over runs. Dashed: true = predicted, where the estimator has a unit.
    """
    name, unit = next(iter(validation.units.items()))
    figure, panels = _panels(len(validation.measured), 3.9, 4.2)
    for ax, measured in zip(panels, validation.measured, strict=True):
        _scatter(ax, measured, name, has_unit=unit is not None)
    runs = max(len(measured.effects) for measured in validation.measured)
    notes = [
        *(["dashed: true = predicted"] if unit is not None else []),
        *([f"bars: standard error over {runs} runs"] if runs > 1 else []),
    ]
    figure.suptitle(
        "\n".join([f"Stage '{validation.stage}': {name} against training again", "; ".join(notes)]), fontsize=11
    )
    return figure


def estimators(validation: Validation) -> "Figure":
    """Spearman's r of every estimator with its 95 % interval, a panel for each choice of removals."""
    names = list(validation.units)
    figure, panels = _panels(len(validation.measured), 3.9, 1.3 + 0.42 * len(names), sharey=True)
    for place, (ax, measured) in enumerate(zip(panels, validation.measured, strict=True)):
        _ranking(ax, measured, names)
        ax.set_title(f"{measured.choice} (n = {len(measured.removals)})", fontsize=10)
        if place + _columns(len(panels)) >= len(panels):
            ax.set_xlabel("Spearman's r with the true change", fontsize=9)
    figure.suptitle(
        f"Stage '{validation.stage}': how estimators order what training again does\nbars: 95 % over removals",
        fontsize=11,
    )
    return figure


def _columns(count: int) -> int:
    return count if count <= 3 else 2 if count == 4 else 3


def _panels(count: int, width: float, height: float, **shared: Any) -> "tuple[Figure, list[Axes]]":
    """A figure of its own, in no global state, with `count` panels."""
    from matplotlib.figure import Figure

    columns = _columns(count)
    rows = math.ceil(count / columns)
    size = (max(width * columns, 5.5), height * rows + 0.6)
    figure = Figure(figsize=size, layout="constrained")
    found = list(figure.subplots(rows, columns, squeeze=False, **shared).flat)
    for unused in found[count:]:
        unused.remove()
    return figure, found[:count]


def _scatter(ax: "Axes", measured: Measured, name: str, *, has_unit: bool) -> None:
    predicted, true = measured.predicted[name], measured.true
    runs = len(measured.effects)
    error = measured.effects.std(dim=0) / math.sqrt(runs) if runs > 1 else None
    alike = has_unit and _size(true) < SIMILAR * _size(predicted) and _size(predicted) < SIMILAR * _size(true)
    power = _power(max(_size(predicted), _size(true)))
    horizontal, vertical = (power, power) if alike else (_power(_size(predicted)), _power(_size(true)))
    x, y = predicted / 10.0**horizontal, true / 10.0**vertical
    bars = torch.zeros_like(y) if error is None else error / 10.0**vertical
    ax.axhline(0, color="#cccccc", linewidth=0.8, zorder=0)
    ax.axvline(0, color="#cccccc", linewidth=0.8, zorder=0)
    if has_unit:
        ax.axline((0, 0), slope=10.0 ** (horizontal - vertical), color=GREY, linewidth=1, linestyle="--", zorder=1)
    style: dict[str, Any] = {"markersize": 5, "markeredgecolor": "white", "markeredgewidth": 0.4, "elinewidth": 0.8}
    ax.errorbar(
        x.tolist(),
        y.tolist(),
        yerr=None if error is None else bars.tolist(),
        fmt="o",
        color=BLUE,
        ecolor=GREY,
        alpha=0.85,
        **style,
    )
    _limits(ax, x, torch.cat([y - bars, y + bars]), alike=alike)
    found = measured.agreement[name]
    slope = _figure(found.slope, 2) if has_unit else "-"
    figures = f"r {_figure(found.pearson_r)}   Spearman {_figure(found.spearman_r)}   slope {slope}"
    ax.set_title(f"{measured.choice}\n{figures}", fontsize=10)
    ax.set_xlabel(f"predicted effect of removal\n({_unit(horizontal, has_unit=has_unit)}; - helps)", fontsize=9)
    ax.set_ylabel(f"true effect of removal\n({_unit(vertical)}; - helps)", fontsize=9)
    ax.locator_params(nbins=5)
    ax.tick_params(labelsize=8)


def _limits(ax: "Axes", x: Tensor, y: Tensor, *, alike: bool) -> None:
    """Zero and every point in view; one range for both axes where they are alike."""
    low_x, high_x = _range(x)
    low_y, high_y = _range(y)
    if alike:
        low_x = low_y = min(low_x, low_y)
        high_x = high_y = max(high_x, high_y)
        ax.set_box_aspect(1)
    ax.set_xlim(low_x, high_x)
    ax.set_ylim(low_y, high_y)


def _range(values: Tensor) -> tuple[float, float]:
    low, high = min(0.0, float(values.min())), max(0.0, float(values.max()))
    margin = 0.08 * (high - low) or 1.0
    return low - margin, high + margin


def _ranking(ax: "Axes", measured: Measured, names: list[str]) -> None:
    ax.axvline(0, color=GREY, linewidth=0.8, linestyle="--", zorder=0)
    for place, name in enumerate(names):
        found, first = measured.agreement[name], place == 0
        color = BLUE if first else ORANGE
        low, high = found.spearman_interval
        if math.isfinite(low + high):
            ax.hlines(place, low, high, color=color, linewidth=1.8)
        if math.isfinite(found.spearman_r):
            face = color if first else "white"
            ax.plot(found.spearman_r, place, "o" if first else "D", color=color, markerfacecolor=face, markersize=6)
        else:
            ax.text(0.03, place, "not defined", fontsize=8, color=GREY, va="center")
    ax.set_yticks(range(len(names)), [textwrap.fill(name, 18) for name in names], fontsize=9)
    ax.set_ylim(len(names) - 0.5, -0.5)
    ax.set_xlim(-1.05, 1.05)
    ax.set_xticks([-1.0, -0.5, 0.0, 0.5, 1.0])
    ax.grid(axis="x", color="#e5e5e5", linewidth=0.6)
    ax.set_axisbelow(True)
    ax.tick_params(axis="x", labelsize=8)


def _size(values: Tensor) -> float:
    return float(values.abs().max())


def _power(size: float) -> int:
    """The power of ten that is taken out of the numbers on an axis."""
    power = math.floor(math.log10(size)) if size > 0 else 0
    return 0 if -1 <= power <= 2 else power


def _unit(power: int, *, has_unit: bool = True) -> str:
    words = UNIT if has_unit else "no unit"
    return f"$10^{{{power}}}$ {words}" if power and has_unit else f"{words}, $10^{{{power}}}$" if power else words


def _figure(value: float, digits: int = 4) -> str:
    return f"{value:.{digits}f}" if math.isfinite(value) else "-"

"""Pictures of predictions beside what retraining did."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.intervals import over_seeds
from stagetrace.results.files import atomic
from stagetrace.validation import Measured

COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#000000", "#999999", "#F0E442")
"""Okabe and Ito's, which the colour-blind tell apart."""


def panels(path: Path, rows: Mapping[str, Sequence[Sequence[Measured]]], estimator: str) -> None:
    """A row per key, a panel per choice of removals: predicted and true effects, a colour per seed.

    rows: for each key, the measured choices of each seed.
    """
    across = max(len(seeds[0]) for seeds in rows.values())
    figure = Figure(figsize=(2.9 * across, 2.9 * len(rows) + 0.5), layout="constrained")
    axes = figure.subplots(len(rows), across, squeeze=False)
    for row, (title, seeds) in zip(axes, rows.items(), strict=True):
        for ax in row[len(seeds[0]) :]:
            ax.axis("off")
        for ax, place in zip(row, range(len(seeds[0])), strict=False):
            _panel(
                ax,
                [measured[place] for measured in seeds if place < len(measured)],
                estimator,
                f"{title}\n{seeds[0][place].choice}",
            )
    figure.supxlabel("predicted change of the query loss\n(nats; negative = removal helps)", fontsize=9)
    figure.supylabel("change after retraining (nats)", fontsize=9)
    with atomic(path) as temporary:
        figure.savefig(temporary, dpi=90, format="png")


def _panel(ax: Axes, seeds: Sequence[Measured], estimator: str, title: str) -> None:
    ends: list[float] = []
    for number, measured in enumerate(seeds):
        predicted, true = measured.predicted[estimator].numpy(), measured.true.numpy()
        error = (
            measured.effects.std(dim=0).numpy() / len(measured.effects) ** 0.5 if len(measured.effects) > 1 else None
        )
        ax.errorbar(predicted, true, yerr=error, fmt="o", ms=3, lw=0.6, alpha=0.75, color=COLOURS[number])
        ends += [predicted.min(), predicted.max(), true.min(), true.max()]
    ax.axline((0, 0), slope=1, color="black", lw=0.8, ls="--")
    margin = 0.05 * (max(ends) - min(ends))
    ax.set_xlim(min(ends) - margin, max(ends) + margin)
    ax.set_ylim(min(ends) - margin, max(ends) + margin)
    ax.ticklabel_format(style="sci", scilimits=(0, 0))
    ax.tick_params(labelsize=7)
    figures = [measured.agreement[estimator] for measured in seeds]
    r, rank, slope = (
        over_seeds([getattr(one, name) for one in figures])["mean"] for name in ("pearson_r", "spearman_r", "slope")
    )
    ax.set_title(f"{title}\nr {r:.3f}, Spearman {rank:.3f}, slope {slope:.2f}", fontsize=8)


def points(path: Path, drawn: Mapping[str, Mapping[str, Mapping[str, float]]], label: str) -> None:
    """A panel per key, a line per estimator over the shares."""
    if not drawn:
        return
    across = 3
    down = -(-len(drawn) // across)
    figure = Figure(figsize=(4.2 * across, 3.2 * down + 0.9), layout="constrained")
    axes = figure.subplots(down, across, squeeze=False).flatten()
    for ax in axes[len(drawn) :]:
        ax.axis("off")
    for ax, (title, estimators) in zip(axes, drawn.items(), strict=False):
        for number, (name, values) in enumerate(estimators.items()):
            first = number == 0
            ax.plot(
                list(values),
                list(values.values()),
                marker="o",
                lw=2.2 if first else 1,
                color=COLOURS[number % len(COLOURS)],
                label=name,
            )
        ax.axhline(0, color="grey", lw=0.6)
        ax.set_ylim(-0.6, 1.02)
        ax.set_title(title, fontsize=9)
        ax.set_xlabel("share of the pretraining examples in a group", fontsize=8)
    axes[0].set_ylabel(label, fontsize=8)
    handles, names = axes[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=4, fontsize=8, frameon=False)
    with atomic(path) as temporary:
        figure.savefig(temporary, dpi=100, format="png")

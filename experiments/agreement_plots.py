"""Pictures of predictions against what retraining did."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.records import over_seeds
from experiments.score_plots import saved
from stagetrace.validation.validate import Measured

COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#000000", "#999999", "#F0E442")
"""Okabe and Ito's, which the colour-blind tell apart."""


def scatter(path: Path, rows: Mapping[str, Sequence[Sequence[Measured]]], estimator: str) -> None:
    """A row per key, a panel per choice of removals: predicted and true effects, a colour per seed.

    rows: for each key, the measured choices of each seed.
    """
    across = max((len(seeds[0]) for seeds in rows.values()), default=0)
    if not across:
        return
    figure = Figure(figsize=(2.9 * across, 2.9 * len(rows) + 0.5), layout="constrained")
    axes = figure.subplots(len(rows), across, squeeze=False)
    for row, (title, seeds) in zip(axes, rows.items(), strict=True):
        for place, ax in enumerate(row):
            if place >= len(seeds[0]):
                ax.axis("off")
                continue
            measured = [choices[place] for choices in seeds if place < len(choices)]
            _panel(ax, measured, estimator, f"{title}\n{measured[0].choice}")
    figure.supxlabel("predicted change of the query loss\n(nats; negative = removal helps)", fontsize=9)
    figure.supylabel("change after retraining (nats)", fontsize=9)
    saved(path, figure, dpi=90)


def _panel(ax: Axes, seeds: Sequence[Measured], estimator: str, title: str) -> None:
    ends = list[float]()
    for number, measured in enumerate(seeds):
        predicted, true = measured.predicted[estimator].numpy(), measured.true.numpy()
        runs = len(measured.effects)
        error = measured.effects.std(dim=0).numpy() / runs**0.5 if runs > 1 else None
        ax.errorbar(predicted, true, yerr=error, fmt="o", ms=3, lw=0.6, alpha=0.75, color=COLOURS[number])
        ends += [predicted.min(), predicted.max(), true.min(), true.max()]
    ax.axline((0, 0), slope=1, color="black", lw=0.8, ls="--")
    margin = 0.05 * (max(ends) - min(ends))
    limits = (min(ends) - margin, max(ends) + margin)
    ax.set(xlim=limits, ylim=limits)
    ax.ticklabel_format(style="sci", scilimits=(0, 0))
    ax.tick_params(labelsize=7)
    records = [measured.agreement[estimator] for measured in seeds]
    figures = ("pearson_r", "spearman_r", "slope")
    r, rank, slope = (over_seeds([getattr(one, name) for one in records])["mean"] for name in figures)
    ax.set_title(f"{title}\nr {r:.3f}, Spearman {rank:.3f}, slope {slope:.2f}", fontsize=8)


def by_share(path: Path, drawn: Mapping[str, Mapping[str, Mapping[str, float]]], label: str) -> None:
    """A panel per key, a line per estimator over the shares of a group."""
    if not drawn:
        return
    across, down = 3, -(-len(drawn) // 3)
    figure = Figure(figsize=(4.2 * across, 3.2 * down + 0.9), layout="constrained")
    axes = figure.subplots(down, across, squeeze=False).flatten()
    for ax in axes[len(drawn) :]:
        ax.axis("off")
    for ax, (title, estimators) in zip(axes, drawn.items(), strict=False):
        for number, (name, values) in enumerate(estimators.items()):
            width, colour = 1 if number else 2.2, COLOURS[number % len(COLOURS)]
            ax.plot(list(values), list(values.values()), marker="o", lw=width, color=colour, label=name)
        ax.axhline(0, color="grey", lw=0.6)
        ax.set_ylim(-0.6, 1.02)
        ax.set_title(title, fontsize=9)
        ax.set_xlabel("share of the pretraining examples in a group", fontsize=8)
    axes[0].set_ylabel(label, fontsize=8)
    handles, names = axes[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=4, fontsize=8, frameon=False)
    saved(path, figure, dpi=100)

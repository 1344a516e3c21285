"""The figure: how well methods order the subsets, by their size, and how far other orders of the batches agree."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.two_stage.protocol import OTHER, RECORDED
from benchmarks.two_stage.score import Row
from experiments.agreement_plots import COLOURS
from experiments.score_plots import saved

SHOWN = (
    "exact, the recorded steps",
    "exact fine-tuning, phi_t",
    "exact fine-tuning, Gauss-Newton + 0.1",
    "exact, mean of 8 other orders",
    "idealised, Gauss-Newton + 0.1, alpha of the steps",
    "single-stage, Gauss-Newton + 0.1",
    "gradient dot product",
    "kronfluence, EK-FAC",
    "dattri, TRAK",
)
"""Methods that are drawn; the table has all."""


def draw(path: Path, rows: Mapping[str, Sequence[Row]], agreed: Sequence[Row]) -> None:
    """Above the recorded truth (LDS over all queries), below other orders (r of the mean query), a panel a chain."""
    shown = [name for name in SHOWN if name in rows]
    chains = list(dict.fromkeys(row["chain"] for name in shown for row in rows[name]))
    if not chains:
        return
    figure = Figure(figsize=(3.1 * len(chains), 7.2), layout="constrained")
    axes = figure.subplots(2, len(chains), squeeze=False, sharey=True)
    for place, chain in enumerate(chains):
        for ax, kind, figure_name in ((axes[0][place], RECORDED, "lds"), (axes[1][place], OTHER, "r")):
            _panel(ax, {name: rows[name] for name in shown}, chain, kind, figure_name)
        ceilings = {row["percent"]: row["ceiling"]["mean"] for row in agreed if row["chain"] == chain}
        axes[1][place].plot(list(ceilings), list(ceilings.values()), color="black", ls=":", lw=1.4, label="ceiling")
        axes[0][place].set_title(f"{chain}\nrecorded truth", fontsize=9)
        axes[1][place].set_title("other orders, mean query", fontsize=9)
        axes[1][place].set_xlabel("pretraining examples left out, %", fontsize=8)
    axes[0][0].set_ylabel("linear datamodelling score, all queries", fontsize=8)
    axes[1][0].set_ylabel("Pearson's r, mean query", fontsize=8)
    found = [ax.get_legend_handles_labels() for ax in axes.flatten()]
    named = {label: handle for handles, labels in found for handle, label in zip(handles, labels, strict=True)}
    figure.legend(list(named.values()), list(named), loc="outside lower center", ncols=3, fontsize=8, frameon=False)
    saved(path, figure, dpi=100)


def _panel(ax: Axes, methods: Mapping[str, Sequence[Row]], chain: str, kind: str, figure: str) -> None:
    for number, (name, rows) in enumerate(methods.items()):
        of = [row for row in rows if row["chain"] == chain and row["truth"] == kind and row["queries"] > 1]
        if kind == OTHER:
            of = [row for row in rows if row["chain"] == chain and row["truth"] == kind]
        if of:
            x, y = [row["percent"] for row in of], [row[figure]["mean"] for row in of]
            ax.plot(x, y, marker="o", ms=3, lw=1.4, color=COLOURS[number % len(COLOURS)], label=name)
    ax.axhline(0, color="grey", lw=0.6)
    ax.set_xscale("log")
    ticks = sorted({row["percent"] for rows in methods.values() for row in rows if row["truth"] == kind})
    ax.set_xticks(ticks, [str(tick) for tick in ticks])
    ax.minorticks_off()
    ax.set_ylim(-0.6, 1.05)
    ax.tick_params(labelsize=7)

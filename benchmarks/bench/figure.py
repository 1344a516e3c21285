"""The curves: seconds over examples, parameters, queries and ranks, this library's and kronfluence's."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from benchmarks.bench import rows as parts
from benchmarks.bench.measured import Measured
from benchmarks.bench.tables import library
from experiments.agreement_plots import COLOURS
from experiments.score_plots import saved

LABELS = {
    parts.EXAMPLES: "examples scored",
    parts.PARAMETERS: "parameters",
    parts.QUERIES: "queries",
    parts.RANKS: "processes, one thread each",
}


def draw(path: Path, done: Sequence[Measured]) -> None:
    """A panel for each curve that has rows, both axes logarithmic."""
    shown = [part for part in parts.CURVES if any(row.ask.part == part and row.seconds for row in done)]
    if not shown:
        return
    figure = Figure(figsize=(3.1 * len(shown), 3.6), layout="constrained")
    every = figure.subplots(1, len(shown), squeeze=False)[0]
    names = list(dict.fromkeys((library(row), row.ask.method) for row in done if row.ask.part in shown))
    for ax, part in zip(every, shown, strict=True):
        for number, name in enumerate(names):
            of = [
                row for row in done if row.ask.part == part and (library(row), row.ask.method) == name and row.seconds
            ]
            sizes = [row.line["of"] if part == parts.PARAMETERS else row.ask.size for row in of]
            if of:
                seconds = [row.seconds for row in of]
                ax.plot(sizes, seconds, marker="o", ms=4, lw=1.5, color=COLOURS[number], label=", ".join(name))
        ax.set(xscale="log", yscale="log", ylim=_limits(part, done))
        ax.xaxis.set_minor_formatter(NullFormatter())
        ax.set_xlabel(LABELS[part], fontsize=8)
        ax.tick_params(labelsize=7, which="both")
        ax.grid(visible=True, lw=0.3)
        if part == parts.RANKS:
            ax.set_xticks(sizes := sorted({row.ask.size for row in done if row.ask.part == part}), map(str, sizes))
            ax.minorticks_off()
    every[0].set_ylabel("processor seconds (of each process)", fontsize=8)
    found = [ax.get_legend_handles_labels() for ax in every]
    named = {label: handle for handles, labels in found for handle, label in zip(handles, labels, strict=True)}
    figure.legend(list(named.values()), list(named), loc="outside lower center", ncols=4, fontsize=8, frameon=False)
    saved(path, figure, dpi=130)


def _limits(part: str, done: Sequence[Measured]) -> tuple[float, float]:
    """At least a decade, so that noise does not look like a trend."""
    seconds = [row.seconds for row in done if row.ask.part == part and row.seconds]
    low, high = min(seconds) / 1.5, max(seconds) * 1.5
    return (low, max(high, 10 * low))

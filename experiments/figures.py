"""Pictures of what the scores say."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import torch

from experiments.images import Images
from stagetrace import Scores
from stagetrace.results.files import atomic

CAPTION = (
    "Score of example i: d(query loss) / d(epsilon) where its stage minimised mean loss + epsilon loss_i.\n"
    "Positive = harmful, negative = helpful. Unit: query loss (mean cross-entropy, nats)."
)
EACH = CAPTION.replace("(mean cross-entropy, nats)", "(that test image's cross-entropy, nats)")
LEFT_AND_RIGHT = "Left: a misclassified test image. Right: the pretraining images with the largest scores for it."
COLUMNS = 10


def extremes(path: Path, scores: Scores, images: Images, classes: tuple[int, ...], query: str) -> None:
    """The most harmful and the most helpful examples as a grid, over a histogram of all scores.

    query: in words, what the query loss is the mean over.
    """
    plt = _pyplot()
    figure = plt.figure(figsize=(11, 8), layout="constrained")
    harmful, helpful, below = figure.subfigures(3, 1, height_ratios=(1, 1, 1.9))
    for part, is_harmful, words in (
        (harmful, True, "Most harmful (largest scores)"),
        (helpful, False, "Most helpful (most negative scores)"),
    ):
        part.suptitle(f"{words} of {scores.n_examples:,} examples of stage '{scores.stage}'", fontsize=11)
        axes = part.subplots(1, COLUMNS)
        for ax in axes:
            ax.axis("off")
        for ax, row in zip(axes, scores.top(COLUMNS, harmful=is_harmful), strict=False):
            _picture(ax, images.pixels[row.index])
            ax.set_title(
                f"class {classes[int(images.labels[row.index])]}\n{row.score:+.2f}\nno. {row.index}", fontsize=8
            )
    _histogram(below.subplots(), scores, images, classes)
    below.supxlabel(f"{CAPTION}\nQuery: {query}.", fontsize=9)
    with atomic(path) as temporary:
        figure.savefig(temporary, dpi=110, format="png")
    plt.close(figure)


def densities(path: Path, scores: Mapping[str, torch.Tensor], title: str, note: str) -> None:
    """How the scores of the same examples are spread, a line for each of some models.

    note: the figures that the picture stands for, a line or two.
    """
    plt = _pyplot()
    figure, ax = plt.subplots(figsize=(8.5, 5), layout="constrained")
    ends = torch.cat(list(scores.values())).quantile(torch.tensor([0.001, 0.999], dtype=torch.float64)).tolist()
    edges = torch.linspace(ends[0], ends[1], 81).numpy()
    for label, values in scores.items():
        ax.hist(values.clamp(*ends).numpy(), bins=edges, histtype="step", linewidth=1.4, label=label)
    ax.axvline(0, color="black", linewidth=0.8)
    ax.set_yscale("log")
    ax.set_xlabel("score (+ harmful, query loss; the outermost bars hold all beyond)")
    ax.set_ylabel("pretraining examples")
    ax.set_title(title, fontsize=11)
    ax.legend(fontsize=9, frameon=False)
    figure.supxlabel(f"{note}\n{CAPTION}", fontsize=8.5)
    with atomic(path) as temporary:
        figure.savefig(temporary, dpi=110, format="png")
    plt.close(figure)


def gains(
    path: Path,
    paired: Mapping[str, Mapping[str, Any]],
    by_share: Mapping[str, Mapping[float, Mapping[str, Any]]],
    note: str,
) -> None:
    """Differences of accuracy (points, + = better): paired ones, seed by seed, and those by share left out.

    paired, by_share: what `over_seeds` gives, by name (and share, 0 to 1).
    """
    plt = _pyplot()
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 5), layout="constrained")
    for place, found in enumerate(paired.values()):
        left.plot([place - 0.12] * found["n"], found["each"], "o", color="grey", markersize=4)
        left.errorbar(place + 0.12, found["mean"], yerr=_bars([found]), fmt="o", color="C0", capsize=4)
    left.set_xticks(range(len(paired)), paired, fontsize=9)
    left.set_xlim(-0.6, len(paired) - 0.4)
    left.set_ylabel("difference of accuracy (points, + = better)")
    left.set_title("Paired differences by seed", fontsize=11)
    for place, (name, several) in enumerate(by_share.items()):
        x = [100 * share + 0.4 * (place - 0.5) for share in several]
        means = [found["mean"] for found in several.values()]
        right.errorbar(x, means, yerr=_bars(list(several.values())), fmt="o-", capsize=4, label=f"{name} left out")
    right.set_xlabel("pretraining examples left out (%)")
    right.set_ylabel("accuracy less that with all examples (points)")
    right.set_title("By share left out", fontsize=11)
    right.legend(fontsize=9, frameon=False)
    for ax in (left, right):
        ax.axhline(0, color="black", linewidth=0.8)
    figure.supxlabel(note, fontsize=8.5)
    with atomic(path) as temporary:
        figure.savefig(temporary, dpi=110, format="png")
    plt.close(figure)


def _bars(several: Sequence[Mapping[str, Any]]) -> list[list[float]]:
    """Lengths below and above the means; none for a single seed."""
    return [
        [0.0 if found["low"] is None else abs(found[end] - found["mean"]) for found in several]
        for end in ("low", "high")
    ]


@final
@dataclass(frozen=True)
class Picture:
    """An image `[channels, height, width]` and the words above it."""

    pixels: torch.Tensor
    words: str


def beside(path: Path, rows: Sequence[Sequence[Picture]], title: str) -> None:
    """A row for each query: its picture, a gap, and the pictures of its most harmful examples."""
    plt = _pyplot()
    columns = len(rows[0]) - 1
    figure = plt.figure(figsize=(1.35 * columns + 2.6, 1.55 * len(rows) + 1.3), layout="constrained")
    figure.suptitle(title, fontsize=12)
    grid = figure.add_gridspec(len(rows), columns + 1, width_ratios=(1.7, *(1.0 for _ in range(columns))))
    for place, row in enumerate(rows):
        for column, picture in enumerate(row):
            ax = figure.add_subplot(grid[place, column])
            ax.axis("off")
            _picture(ax, picture.pixels)
            ax.set_title(picture.words, fontsize=8)
    figure.supxlabel(
        f"{LEFT_AND_RIGHT}\n{EACH}",
        fontsize=8,
    )
    with atomic(path) as temporary:
        figure.savefig(temporary, dpi=110, format="png")
    plt.close(figure)


def _picture(ax: Any, pixels: torch.Tensor) -> None:
    shown = pixels.detach().cpu()
    if len(shown) == 1:
        ax.imshow(shown[0].numpy(), cmap="gray_r", vmin=0, vmax=1)
    else:
        ax.imshow(shown.permute(1, 2, 0).numpy())


def _histogram(ax: Any, scores: Scores, images: Images, classes: tuple[int, ...]) -> None:
    """All scores, a line a class; counts are drawn on a logarithmic scale, since the ends are rare."""
    by_class = [scores.values[images.labels.cpu() == number].numpy() for number in range(len(classes))]
    ax.hist(by_class, bins=60, histtype="step", label=[f"class {label}" for label in classes])
    ax.axvline(0, color="black", linewidth=0.8)
    ax.set_yscale("log")
    ax.set_xlabel("score (+ harmful, query loss)")
    ax.set_ylabel("examples")
    ax.legend(fontsize=8, frameon=False)


def _pyplot() -> Any:
    """Matplotlib, drawing into files only."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt

"""Pictures of what the scores say."""

from pathlib import Path
from typing import Any

import torch

from experiments.images import Images
from stagetrace import Scores
from stagetrace.results.atomic import atomic

CAPTION = (
    "Score of example i: d(query loss) / d(epsilon) where its stage minimised mean loss + epsilon loss_i.\n"
    "Positive = harmful, negative = helpful. Unit: query loss (mean cross-entropy, nats)."
)
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

"""What the demo found: scores beside the truth, both stages solved again without the example; and how it is shown."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch
from rich.console import Group, RenderableType
from rich.table import Table as RichTable
from rich.text import Text
from torch import Tensor

from stagetrace import Chain, Query, Scores, Trace
from stagetrace.demo.digits import Trained
from stagetrace.progress import Progress
from stagetrace.results.jsonable import JSON, to_json
from stagetrace.results.sign import SIGN
from stagetrace.results.table import Table
from stagetrace.validation import Agreement, removal_effects

MADE_BY = "stagetrace demo"
"""Who made the record, for a later demo that takes its place."""

SLOPE = "slope: true over predicted, least squares through the origin, 1 is ideal"

INKED = 0.4
"""Ink above which a pixel is drawn."""


@final
@dataclass(frozen=True)
class Checked:
    """One pretraining digit: predicted and true change of the test loss; negative = removing it helps.

    tenth: where a tenth of it was removed. digit: what it shows.
    """

    index: int
    digit: int
    predicted: float
    true: float
    predicted_tenth: float
    true_tenth: float


@final
@dataclass(frozen=True)
class Check:
    """A choice of digits, solved again without each."""

    choice: str
    rows: tuple[Checked, ...]
    whole: Agreement
    tenth: Agreement
    seconds: float


def check(
    choice: str,
    indices: Sequence[int],
    chain: Chain,
    query: Query,
    scores: Scores,
    digits: Sequence[int],
    progress: Progress,
) -> Check:
    """Solve both stages again without each digit, and without a tenth of it; compare with what its score says."""
    started = time.perf_counter()
    predicted = scores.removal_effect[list(indices)]
    true, tenth = (
        removal_effects(chain, query, scores.stage, indices, share=share, progress=progress) for share in (1.0, 0.1)
    )
    columns = zip(
        *(column.tolist() for column in (predicted, true, predicted / 10, tenth)),
        strict=True,
    )
    rows = tuple(Checked(index, digits[index], *row) for index, row in zip(indices, columns, strict=True))
    return Check(
        choice, rows, Agreement.of(predicted, true), Agreement.of(predicted / 10, tenth), time.perf_counter() - started
    )


def drawn(total: int, count: int, seed: int) -> list[int]:
    """`count` of `total` indices, without a look at any score."""
    generator = torch.Generator().manual_seed(seed + 1)
    return torch.randperm(total, generator=generator)[:count].tolist()


def drawing(image: Tensor) -> Text:
    """An image `[height, width]` from 0 to 1 (ink); eight rows of pixels make four lines.

    Example:
        >>> print(drawing(Tensor([[1.0, 0.0, 1.0], [1.0, 1.0, 0.0]])))
        █▄▀
    """
    rows: list[list[float]] = image.tolist()
    pairs = [[(a > INKED, b > INKED) for a, b in zip(*rows[n : n + 2], strict=True)] for n in range(0, len(rows), 2)]
    shapes = {(False, False): " ", (True, False): "▀", (False, True): "▄", (True, True): "█"}
    return Text("\n".join("".join(shapes[pair] for pair in line) for line in pairs), no_wrap=True)


def side_by_side(title: str, images: Sequence[Tensor], captions: Sequence[str]) -> RichTable:
    """Digits in a row, their captions below."""
    table = RichTable(
        title=Text(title, style="bold"), title_justify="left", box=None, show_header=False, padding=(0, 2, 0, 0)
    )
    for _ in images:
        table.add_column(justify="left", no_wrap=True)
    table.add_row(*(drawing(image) for image in images))
    table.add_row(*(Text(caption) for caption in captions))
    return table


@final
@dataclass(frozen=True, eq=False)
class DemoResult:
    """The demo's numbers. Effects are changes of the test loss in nats; negative = taking the digit out helps.

    test_loss, test_accuracy: of the fine-tuned model on the held-out digits 4 to 9.
    images: the pretraining digits, `[n, 8, 8]`; digits: what they show.
    seconds: by what was done.
    """

    stages: tuple[Trained, ...]
    test_loss: float
    trace: Trace
    checks: tuple[Check, ...]
    images: Tensor
    digits: tuple[int, ...]
    shown: int
    seconds: dict[str, float]

    @property
    def scores(self) -> Scores:
        """The pretraining digits' scores."""
        return self.trace["pretrain"]

    def stage_table(self) -> Table:
        """How each stage was trained, and that its minimum is strict."""
        headings = ("stage", "trained on", "parameters", "test accuracy", "gradient norm", "Hessian eigenvalues")
        rows = tuple(
            (
                s.stage,
                f"{s.examples:,} digits {s.digits}",
                f"{s.parameters:,}",
                f"{s.accuracy:.1%}",
                f"{s.gradient_norm:.1e}",
                f"{s.smallest_eigenvalue:.1e} to {s.largest_eigenvalue:.1e}",
            )
            for s in self.stages
        )
        caption = (
            "no eigenvalue is 0 or below: both minima are strict\n"
            f"test loss (query loss) of the fine-tuned model: {self.test_loss:.4f} nats"
        )
        return Table("two stages, each at its minimum", headings, rows, caption, frozenset({"stage", "trained on"}))

    def gallery(self, *, harmful: bool) -> RenderableType:
        """The most harmful or most helpful pretraining digits, drawn side by side."""
        top = self.scores.top(self.shown, harmful=harmful)
        captions = [
            f"#{row.index}: a {self.digits[row.index]}\nscore {row.score:+.2f}\n{row.removal_effect:+.4f}"
            for row in top
        ]
        title = f"{top.title}\nindex: digit, score, predicted effect of removal on the test loss"
        return side_by_side(title, [self.images[i] for i in top.indices], captions)

    def check_table(self, check: Check) -> Table:
        """Predicted and true, a row a digit."""
        headings = ("index", "digit", "predicted", "true (nats)", "a tenth: predicted", "true (nats)")
        rows = tuple(
            (
                *(str(row.index), str(row.digit), f"{row.predicted:+.3e}", f"{row.true:+.3e}"),
                *(f"{row.predicted_tenth:+.3e}", f"{row.true_tenth:+.3e}"),
            )
            for row in check.rows
        )
        solves = 4 * len(rows)
        caption = (
            f"minus: removing it helps\nremoved: {check.whole}\na tenth removed: {check.tenth}\n"
            f"{solves} stages solved again in {check.seconds:.1f} s"
        )
        title = f"{check.choice}: change of the test loss without it"
        return Table(title, headings, rows, caption)

    def renderables(self) -> list[RenderableType]:
        """All that is printed, in order."""
        return [
            self.stage_table().rich(),
            Text(f"score: query loss; {SIGN}\n"),
            self.gallery(harmful=True),
            Text(),
            self.gallery(harmful=False),
            Text(),
            *(self.check_table(check).rich() for check in self.checks),
            Text(SLOPE),
            Text(", ".join(f"{what} {seconds:.1f} s" for what, seconds in self.seconds.items())),
        ]

    def __rich__(self) -> Group:
        return Group(*self.renderables())

    def record(self) -> JSON:
        """The numbers as plain values: what `demo.json` holds."""
        return to_json(
            {
                "made_by": MADE_BY,
                "sign": SIGN,
                "slope": SLOPE,
                "test_loss": self.test_loss,
                "stages": self.stages,
                "checks": [_check_record(check) for check in self.checks],
                "seconds": self.seconds,
            },
            "demo.json",
        )


def _check_record(check: Check) -> dict[str, object]:
    return {
        "choice": check.choice,
        "removed": check.whole,
        "a_tenth_removed": check.tenth,
        "rows": check.rows,
        "seconds": check.seconds,
    }

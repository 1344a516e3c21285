"""What the demo found, and how it is shown."""

from dataclasses import asdict, dataclass
from typing import final

from rich.console import Group, RenderableType
from rich.text import Text
from torch import Tensor

from stagetrace import Scores, Trace
from stagetrace.demo.check import Check
from stagetrace.demo.draw import side_by_side
from stagetrace.demo.keep import MADE_BY
from stagetrace.demo.train import Trained
from stagetrace.results.json_value import JSON, plain
from stagetrace.results.sheet import Sheet
from stagetrace.results.sign import SIGN
from stagetrace.validation import Agreement

SLOPE = "slope: true over predicted, least squares through the origin, 1 is ideal"


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

    def stage_table(self) -> Sheet:
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
        return Sheet("two stages, each at its minimum", headings, rows, caption, frozenset({"stage", "trained on"}))

    def gallery(self, *, harmful: bool) -> RenderableType:
        """The most harmful or most helpful pretraining digits, drawn side by side."""
        top = self.scores.top(self.shown, harmful=harmful)
        captions = [
            f"#{row.index}: a {self.digits[row.index]}\nscore {row.score:+.2f}\n{row.removal_effect:+.4f}"
            for row in top
        ]
        title = f"{top.title}\nindex: digit, score, predicted effect of removal on the test loss"
        return side_by_side(title, [self.images[i] for i in top.indices], captions)

    def check_table(self, check: Check) -> Sheet:
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
            f"minus: taking it out helps\nremoved: {check.whole}\na tenth removed: {check.tenth}\n"
            f"{solves} stages solved again in {check.seconds:.1f} s"
        )
        title = f"{check.choice}: change of the test loss without it"
        return Sheet(title, headings, rows, caption)

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
        return plain(
            {
                "made_by": MADE_BY,
                "sign": SIGN,
                "slope": SLOPE,
                "test_loss": self.test_loss,
                "stages": [asdict(stage) for stage in self.stages],
                "checks": [_check_record(check) for check in self.checks],
                "seconds": self.seconds,
            },
            "demo.json",
        )


def _check_record(check: Check) -> dict[str, object]:
    def agreement(found: Agreement) -> dict[str, object]:
        return dict(asdict(found))

    return {
        "choice": check.choice,
        "removed": agreement(check.whole),
        "a_tenth_removed": agreement(check.tenth),
        "rows": [asdict(row) for row in check.rows],
        "seconds": check.seconds,
    }

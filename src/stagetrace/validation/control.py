"""Whether training again with all examples ends at the model that was traced."""

import math
from dataclasses import dataclass
from typing import final

from torch import Tensor

from stagetrace.checks.finding import Finding, Level
from stagetrace.results.jsonable import to_json

SHARE = 0.02
"""Of the traced model's query loss: a control that is nearer ends where the scores were taken, for all that matters."""

DEVIATIONS = 3.0
"""How many standard deviations over runs the control's loss may be away and count as noise."""


@final
@dataclass(frozen=True, eq=False)
class Control:
    """The runs that keep every example, beside the model that was traced: true effects are differences to them.

    Scores are taken at the traced model. Where the control ends elsewhere, effects are those of another model, and low
    agreement may say so alone.

    traced: the query loss of the chain's last model, as it is; None where the library trains the stages itself
        (`Unrolled(shared, Steps(...))`), so that scores are taken where its steps end.
    losses: of the control, float64 `[runs]`.
    is_stochastic: whether runs differ in what they drew, so that one alone does not tell their noise.
    """

    traced: float | None
    losses: Tensor
    is_stochastic: bool

    @property
    def loss(self) -> float:
        """The control's query loss, the mean over runs."""
        return float(self.losses.mean())

    @property
    def noise(self) -> float:
        """The standard deviation of the control's loss over runs; 0 where nothing is drawn, NaN where it is unknown."""
        if len(self.losses) > 1:
            return float(self.losses.std())
        return math.nan if self.is_stochastic else 0.0

    @property
    def elsewhere(self) -> bool:
        """Whether the control ended at another model than the one traced, beyond the noise."""
        if self.traced is None:
            return False
        gap = abs(self.loss - self.traced)
        return gap > SHARE * abs(self.traced) and gap > DEVIATIONS * self.noise

    def finding(self, where: str) -> Finding:
        """Both losses in a sentence, a warning where they differ."""
        runs = len(self.losses)
        mean = f" (mean of {runs} runs, standard deviation {self.noise:.1e})" if runs > 1 else ""
        traced = "" if self.traced is None else f"{self.traced:.4g} of the traced model, "
        text = f"query loss: {traced}{self.loss:.4g} of the control{mean}"
        if self.elsewhere:
            text += (
                ". The control, which keeps every example, ends at another model than the one that was traced, so the "
                "effects are not those that the scores are about. Record the training and repeat it (Rerun()); or go "
                "on more gently: the optimiser's saved state, a smaller rate, not start='previous'"
            )
        return Finding(where, "control", Level.WARNING if self.elsewhere else Level.OK, text)

    def record(self) -> dict[str, object]:
        """The figures by name, as JSON holds them."""
        return {
            "traced": self.traced,
            "losses": self.losses.tolist(),
            "noise": to_json(self.noise),
            "elsewhere": self.elsewhere,
        }

"""Examples without a label have loss 0: some are fine, all of them never are."""

from collections.abc import Sequence

from stagetrace.errors import DataError
from stagetrace.objectives.objective import CountsLabels
from stagetrace.stages.risk import Risk


def check_some_labelled(risk: Risk, looked_at: Sequence[int]) -> None:
    """Refuse examples of which none has a label that counts.

    Raises:
        DataError: with the first and last example that was looked at.
    """
    objective = risk.objective
    if not isinstance(objective, CountsLabels):
        return
    if any(objective.labelled(batch.content) for batch in risk.read([looked_at])):
        return
    indices = sorted(looked_at)
    which = f"example {indices[0]:,}" if len(indices) == 1 else f"examples {indices[0]:,} to {indices[-1]:,}"
    raise DataError(
        f"{risk.where}, {which}: none of the {len(indices)} examples looked at has a label that is not ignored, so "
        "their losses are 0 and nothing is learnt from them; give labels (-100 only where nothing is predicted), or "
        "longer texts where a cut left no token to predict"
    )

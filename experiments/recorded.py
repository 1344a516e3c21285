"""A validation as plain numbers, for `result.json`."""

import re
from typing import Any

from stagetrace.validation import LinearDatamodelling, Validation


def recorded(validation: Validation) -> dict[str, Any]:
    """The numbers of one chain, variant and seed: by choice of examples, then by estimator."""
    choices: dict[str, Any] = {}
    for measured in validation.measured:
        is_group = len(measured.removals[0]) > 1
        choices[re.sub(r", seed \d+", "", measured.choice)] = {
            "estimators": {name: agreement.record() for name, agreement in measured.agreement.items()},
            "lds": {
                name: LinearDatamodelling.of(values, measured.true).record()
                for name, values in measured.predicted.items()
            }
            if is_group
            else None,
            "reliability": measured.reliability.record() if measured.reliability else None,
            "mean_absolute_effect": measured.true.abs().mean().item(),
        }
    return {
        "choices": choices,
        "retrainings": validation.retrainings,
        "retrainings_per_minute_and_process": validation.per_minute,
    }

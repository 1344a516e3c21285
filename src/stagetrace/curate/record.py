"""What curation.json holds: plain values, from which the note and the tables are made."""

import hashlib
from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, cast

import numpy as np

from stagetrace.curate.groups import GroupTotal
from stagetrace.results import JSON, SIGN, UNIT
from stagetrace.results.versions import versions
from stagetrace.validation.agreement import known

if TYPE_CHECKING:
    from stagetrace.curate.curation import Curation
    from stagetrace.curate.source import Rows
    from stagetrace.curate.verify import Verified

FORMAT = 1

CHANGE = f"a change of the query loss (unit: {UNIT}) when the examples are left out; negative = leaving them out helps"

CAVEATS = (
    "The prediction is of first order: the sum of the examples' single effects. It is best for few examples and says "
    "less of many.",
    "It holds for the query that was traced. What hurts this query may help another.",
    "The examples were chosen by the same scores that predict, so errors of the scores make the prediction look better "
    "than it is. Training again tells.",
)


def record(curation: "Curation", data: "Rows | None", as_: str, command: str | None) -> dict[str, JSON]:
    """Everything about a curation but its index lists. `of` is what makes it this curation."""
    digest = hashlib.sha256(np.array(curation.drop, dtype=np.int64).tobytes()).hexdigest()
    said: dict[str, object] = {
        "format": FORMAT,
        "sign": SIGN,
        "unit": UNIT,
        "of": {
            "stage": curation.stage,
            "rule": curation.rule.words,
            "examples": curation.scores.n_examples,
            "queries": curation.scores.n_queries,
            "dropped_sha256": digest,
            "balanced": [count.name for count in curation.classes],
            "data": None if data is None else {"place": data.place, "as": as_, "columns": list(data.columns)},
            "run": dict(curation.run),
        },
        "folder": curation.folder,
        "command": command,
        "kept": len(curation.keep),
        "dropped": len(curation.drop),
        "helpful_dropped": curation.helpful_dropped,
        "predicted_change": curation.predicted,
        "change": CHANGE,
        "caveats": list(CAVEATS),
        "classes": [asdict(count) for count in curation.classes],
        "groups": [_group(group) for group in curation.groups],
        "versions": versions(),
        "verified": None,
    }
    return cast("dict[str, JSON]", said)


def verification(verified: "Verified", fits: Mapping[str, str]) -> dict[str, JSON]:
    """What training again said."""
    pairs = zip(verified.random_predicted.tolist(), verified.random_effects.mT.tolist(), strict=True)
    return {
        "fits": dict(fits),
        "predicted_change": verified.predicted,
        "true_change": verified.true,
        "true_change_of_each_run": cast("list[JSON]", verified.effects.tolist()),
        "random_sets": [{"predicted_change": predicted, "true_change_of_each_run": true} for predicted, true in pairs],
        "random_mean_change": verified.random_true.mean().item(),
        "random_sets_as_good": verified.random_better,
        "retrainings": verified.retrainings,
        "seconds": verified.seconds,
    }


def _group(group: GroupTotal) -> dict[str, object]:
    return {name: known(value) for name, value in asdict(group).items()}

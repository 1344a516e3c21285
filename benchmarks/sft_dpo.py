"""`sft-dpo`: the tutorial's chain of pretraining, SFT and DPO, with and without the examples that it names.

The code of `docs/tutorials/dpo.md` is run as it stands there. The recorded trainings are then repeated, from a stage
on, without one of its examples: the three of largest score, and three drawn ones. The query loss is compared with what
the scores predicted.
"""

import contextlib
import doctest
import io
from pathlib import Path
from typing import Any

from benchmarks.report import Report, Row
from stagetrace.validation import RandomRemovals, TopRemovals, validate

TUTORIAL = Path(__file__).parents[1] / "docs" / "tutorials" / "dpo.md"
LARGEST = DRAWN = 3


def run(report: Report) -> None:
    """A row for each example that is left out."""
    made: dict[str, Any] = {}
    with contextlib.redirect_stdout(io.StringIO()):
        for example in doctest.DocTestParser().get_examples(TUTORIAL.read_text()):
            exec(compile(example.source, str(TUTORIAL), "single"), made)
    chain, query, table = made["chain"], made["query"], list[Row]()
    names = [bound.name for bound in chain]
    report.fields["query loss, nats"] = float(query.loss(chain.last))
    choices = [TopRemovals(LARGEST), RandomRemovals(DRAWN, seed=report.asked.seed)]
    for stage in names[-1:] if report.asked.quick else names:
        for measured in validate(chain, query, stage=stage, choices=choices, processes=1).measured:
            predicted = next(iter(measured.predicted.values()))
            for (index,), foreseen, true in zip(measured.removals, predicted, measured.true, strict=True):
                row: Row = {"stage": stage, "chosen": measured.choice, "example": index}
                table.append(row | {"predicted, nats": float(foreseen), "true, nats": float(true)})
    report.table("The query loss without one example, less that with it", table, "removed")

"""Does an example's loss depend on what else is in its batch?"""

import torch
from torch import Tensor

from stagetrace.checks.lookout import Lookout
from stagetrace.checks.rounding import Rounding
from stagetrace.errors import DataError
from stagetrace.stages.data import Batch
from stagetrace.stages.risk import Risk


def losses_are_their_own(risk: Risk, batch: Batch, losses: Tensor, lookout: Lookout, rounding: Rounding) -> str:
    """Refuse losses `[batch]` that change with the batch: in either half of this one, or alone.

    batch: the examples of the lookout, in its order. Its halves are the shorter and the longer ones, which are padded
        differently.

    Raises:
        DataError: with the example, and its loss in both batches.
    """
    if len(batch) == 1:
        return "one example only: nothing else can be in its batch"
    middle = len(batch) // 2
    halves = list(lookout.by_length[:middle]), list(lookout.by_length[middle:])
    companies = [*halves, *([index] for index in lookout.alone)]
    allowed = rounding.of(losses)
    places = {index: place for place, index in enumerate(batch.indices)}
    for company, smaller in zip(companies, risk.read(companies), strict=True):
        here = [places[index] for index in company]
        with torch.no_grad():
            again = risk.losses(risk.trained_values, risk.inherited_values, smaller)
        gap = (again - losses[here]).abs() - allowed[here]
        if bool((gap > 0).any()):
            worst = int(gap.argmax())
            raise DataError(
                f"{risk.where}: the loss of example {company[worst]} depends on what else is in its batch "
                f"({float(losses[here[worst]]):.6g} with {len(batch)} examples, {float(again[worst]):.6g} with "
                f"{len(company)}); it must depend on the example alone: mask padding, do not normalise by the "
                "batch, and let collate= keep the order of the examples. Where a loss compares the rows of a batch "
                "(contrastive, in-batch negatives), make each fixed group of rows one example: "
                "stagetrace.objectives.Grouped and Contrastive"
            )
    return (
        f"the losses of {len(batch)} examples are the same in half the batch, those of {len(lookout.alone)} alone too"
    )

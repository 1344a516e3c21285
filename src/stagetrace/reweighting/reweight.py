"""`reweight`: weights of a chain's training examples that lower a query's loss, found by a few retrainings."""

import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch

from stagetrace.progress import Bars, Progress, Silent
from stagetrace.reweighting.arguments import checked_arguments
from stagetrace.reweighting.repeat import Repeat
from stagetrace.reweighting.result import Retrained, Reweighting
from stagetrace.reweighting.search import Search
from stagetrace.stages.chain import Chain
from stagetrace.stages.modes import in_ordinary_modes
from stagetrace.tracing.ensemble import trained, trained_seeds
from stagetrace.tracing.query import Query
from stagetrace.tracing.trace import checked


@in_ordinary_modes
def reweight(
    chain: Chain,
    query: Query,
    *,
    steps: int = 3,
    of: Iterable[str] | str | None = None,
    held_out: Query | None = None,
    orders: Sequence[int] = (),
    check_orders: Sequence[int] = (),
    progress: Progress | bool = False,
) -> Reweighting:
    """Find weights of the training examples with which training leads to a lower query loss.

    Weights multiply the examples' losses. They are not negative and their mean is 1 in each stage, so that only the
    balance changes: an example may count twice, another not at all. Each step takes the exact derivative of the query
    loss in every weight, through the chain's recorded training with the weights so far; goes along it, projected onto
    the weights that are allowed; and really trains again with the new weights. Where the loss did not fall, or by less
    than a tenth of what was predicted, they are undone, and a shorter way is tried. How far the next step goes follows
    from the share of the predicted change that came true: the derivative's reach is measured along the very way that is
    gone.

    The query's data must not be data that are to judge the result: the weights are fitted to them. Give those as
    `held_out`.

    Args:
        chain: every stage from the first that is reweighted on is recorded (`link=Unrolled(shared, recording)`), or
            trained by the library (`link=Unrolled(shared, Steps(...), seeds=...)`: the mean over the seeds then).
        query: whose mean loss is to fall.
        steps: derivatives that are taken. Each costs two to four trainings, and each try one more.
        of: the stages whose examples are reweighted; None takes all.
        held_out: another query, never differentiated: its loss is measured with equal weights and with the new ones.
        orders: seeds of other orders of the batches: the loss and its derivative are then means over the recorded order
            and these. Weights from a single order fit what was peculiar to it, too.
        check_orders: seeds of further orders, trained with equal weights and with the new ones at the end, to see what
            holds where no derivative was taken. Of stages that the library trains: further seeds.
        progress: True draws progress bars on standard error.

    Returns:
        A `Reweighting`: weights by stage, every try with its predicted and true change, and both queries' losses.

    Raises:
        DescriptionError: a stage cannot be trained again with weights, or a setting does not fit; says what to write.
        DataError, ResultsError: a recorded training does not come out as recorded when it is repeated.
        SolveError: training with equal weights diverged.

    Source: the derivative is that of `Unrolled`; trust regions and gradient projection as in Nocedal & Wright (2006).
    """
    first, stages = checked_arguments(chain, query, steps, of, held_out, orders, check_orders)
    bars = progress if not isinstance(progress, bool) else Bars() if progress else Silent()
    chain = chain.refreshed()
    with tempfile.TemporaryDirectory(prefix="stagetrace-") as scratch:
        folder = Path(scratch)
        repeats = _repeats(chain, first, orders, folder)
        checked(repeats[0].chain, query, bars)
        search = Search(repeats, query, bars, folder)
        equal = {name: torch.ones(len(chain[name].stage.examples), dtype=torch.float64) for name in stages}
        start = search.train(equal)
        queries = [query] if held_out is None else [query, held_out]
        uniform = [[outcome.loss(each) for each in queries] for outcome in start]
        weights, end = search.improve(equal, start, steps)
        weighted = [[outcome.loss(each) for each in queries] for outcome in end]
        trainings = [(repeat, True) for repeat in repeats]
        for repeat in _further(chain, first, repeats[0], check_orders, folder):
            trainings.append((repeat, False))
            uniform.append(search.losses(repeat, equal, queries))
            weighted.append(search.losses(repeat, weights, queries))
    target, *others = (
        tuple(
            Retrained(repeat.name, used, before[place], after[place])
            for (repeat, used), before, after in zip(trainings, uniform, weighted, strict=True)
        )
        for place in range(len(queries))
    )
    return Reweighting(weights, tuple(search.history), target, others[0] if others else (), search.stopped)


def _repeats(chain: Chain, first: str, orders: Sequence[int], folder: Path) -> list[Repeat]:
    """The trainings whose mean loss is to fall."""
    seeds = trained_seeds(chain)
    if seeds:
        return [_by_library(chain, first, seed, folder) for seed in seeds]
    recorded = Repeat.of("recorded order", chain, first)
    return [recorded, *(recorded.reordered(f"order of seed {seed}", seed) for seed in orders)]


def _further(chain: Chain, first: str, known: Repeat, orders: Sequence[int], folder: Path) -> Iterable[Repeat]:
    """Trainings that only check the weights, one after the other."""
    for seed in orders:
        if trained_seeds(chain):
            yield _by_library(chain, first, seed, folder)
        else:
            yield known.reordered(f"order of seed {seed}", seed)


def _by_library(chain: Chain, first: str, seed: int, folder: Path) -> Repeat:
    """The chain with the stages that the library trains as the steps of a seed leave them."""
    return Repeat.of(f"order of seed {seed}", trained(chain, folder / f"seed-{seed}", seed), first)

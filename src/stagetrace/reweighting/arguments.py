"""What `reweight` is given, and refusals of what it cannot do."""

from collections.abc import Iterable, Sequence

from stagetrace.errors import refuse
from stagetrace.parallel import world
from stagetrace.recording.link import Trains
from stagetrace.recording.recorded import Recorded
from stagetrace.stages.chain import Chain
from stagetrace.stages.stage import check_count, check_seeds
from stagetrace.tracing.ensemble import trained_seeds
from stagetrace.tracing.query import Query


def checked_arguments(
    chain: object,
    query: object,
    steps: int,
    of: Iterable[str] | str | None,
    held_out: object,
    orders: Sequence[int],
    check_orders: Sequence[int],
) -> tuple[str, list[str]]:
    """The first stage that is trained again, and those that are reweighted, in the chain's order.

    Raises:
        DescriptionError: says what to write instead.
    """
    if not isinstance(chain, Chain) or not isinstance(query, Query):
        refuse(
            "reweight(chain, query): give a Chain and a Query, such as reweight(Chain(pretrain, finetune), Query(data))"
        )
    if held_out is not None and not isinstance(held_out, Query):
        refuse(f"reweight: held_out must be a Query of other data, got {type(held_out).__name__}")
    if held_out is not None and held_out.data is query.data:
        refuse(
            "reweight: held_out is over the very data of the query, to which the weights are fitted; give other data, "
            "such as the second half of a test set"
        )
    for what, each in (("the query", query), ("held_out", held_out)):
        if each is not None and each.reduction != "mean":
            refuse(
                f"reweight: {what} has reduction='{each.reduction}', but one loss is to fall, the mean; type "
                "Query(data, reduction='mean')"
            )
    if world().size > 1:
        refuse("reweight runs in one process; start it without torchrun")
    check_count(steps, "reweight(steps=...)")
    stages = _stages(chain, of)
    _check_orders(chain, orders, check_orders)
    return stages[0], stages


def _stages(chain: Chain, of: Iterable[str] | str | None) -> list[str]:
    names = list(chain.names) if of is None else [of] if isinstance(of, str) else list(of)
    chain.check_names(names, "reweight(of=...)")
    if not names:
        refuse(f"reweight: of=[] names no stage; type some of {', '.join(map(repr, chain.names))}")
    stages = [name for name in chain.names if name in names]
    for bound in chain.bound_stages[chain.names.index(stages[0]) :]:
        if not isinstance(bound.recording, Recorded | Trains):
            later = [each.name for each in chain if isinstance(each.recording, Recorded | Trains)]
            alone = f", or reweight later stages alone: of={later[-1:]}" if chain.last.name in later else ""
            refuse(
                f"reweight: {bound.stage.where} is not recorded, so it cannot be trained again with weights; record "
                "its training (link=Unrolled(shared, 'runs/.../recording')), have the library train it "
                f"(link=Unrolled(shared, Steps(...))){alone}"
            )
        if bound.name in stages and len(bound.stage.examples) < 2:
            refuse(
                f"reweight: {bound.stage.where} has a single example, whose weight stays 1; name other stages: of=[...]"
            )
    return stages


def _check_orders(chain: Chain, orders: Sequence[int], check_orders: Sequence[int]) -> None:
    check_seeds(orders, "reweight(orders=...)")
    check_seeds(check_orders, "reweight(check_orders=...)")
    seeds = trained_seeds(chain)
    if seeds and orders:
        refuse(
            "reweight: orders= is for recorded stages; where the library trains, give the seeds in the links: "
            "Unrolled(shared, Steps(...), seeds=(0, 1, 2))"
        )
    used = [*seeds, *orders]
    if len({*used, *check_orders}) < len(used) + len(check_orders):
        refuse(
            f"reweight: each seed once: the weights are fitted to the orders {used}, and checked in those of "
            f"check_orders={list(check_orders)}, which must be others"
        )

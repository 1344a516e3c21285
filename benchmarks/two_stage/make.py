"""The truths: every chain of every seed trained, and trained again without each subset.

The trainings that are recorded and those without a subset are the same steps; weights of 0 take examples out. Many
copies train side by side as one batched model, so each file also says how far two of its subsets are from what
`stagetrace.validation.Rerun`, which repeats the recording step by step, makes of them.
"""

import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from importlib.metadata import version
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.two_stage.chains import FINETUNE, PRETRAIN, Asked, Start, families
from benchmarks.two_stage.protocol import RECORDED_ORDER, Protocol
from benchmarks.two_stage.truths import Truth
from experiments.records import hardware
from stagetrace.progress import Progress
from stagetrace.results.jsonable import JSON
from stagetrace.validation import Rerun
from stagetrace.validation.fits.fit import one_copy
from stagetrace.validation.removals import Removal
from stagetrace.validation.resolving import leave_out
from stagetrace.validation.retrain import Retraining
from stagetrace.validation.store import Key, Store

TOGETHER = 24
"""Copies in one batched model; the control is one of them."""
REPEATED = 2
"""Subsets that are also left out of the recording, step by step: the first of the largest sizes."""


def make(
    asked: Asked, protocol: Protocol, names: Sequence[str], seeds: Sequence[int], out: Path, progress: Progress
) -> Iterator[Path]:
    """Train what is missing, and write each family's truths when a seed of it is done; killed, it goes on there."""
    known = families()
    for seed in seeds:
        for name in names:
            starts = known[name](asked, seed, protocol.singles)
            with ExitStack() as stack:
                stores = [stack.enter_context(_store(asked, start)) for start in starts]
                _retrain(starts, stores, protocol, progress)
                for start, store in zip(starts, stores, strict=True):
                    yield _truth(start, store, protocol, asked).write(out)


def _store(asked: Asked, start: Start) -> Store:
    identity: dict[str, JSON] = {"stages": start.fingerprint(), "queries": list(start.queries)}
    return Store(asked.work / "retrained" / f"{start.name}-{start.seed}", identity)


def _retrain(starts: Sequence[Start], stores: Sequence[Store], protocol: Protocol, progress: Progress) -> None:
    """What the stores lack, the recorded order first."""
    subsets = protocol.subsets(starts[0].examples, starts[0].seed)
    asked: dict[int, list[Removal]] = {RECORDED_ORDER: list(subsets.values())}
    for order in protocol.order_seeds:
        asked[order] = [members for name, members in subsets.items() if protocol.in_orders(name)]
    todo = {
        order: [removal for removal in removals if any((order, 1.0, removal) not in store for store in stores)]
        for order, removals in asked.items()
    }
    title = f"training {' and '.join(start.name for start in starts)} again, seed {starts[0].seed}"
    with progress.task(title, sum(map(len, todo.values())), "subsets") as advance:
        for order, removals in todo.items():
            for first in range(0, len(removals), TOGETHER - 1):
                few = removals[first : first + TOGETHER - 1]
                keys: list[Key] = [(order, 1.0, removal) for removal in few]
                for store, (losses, seconds) in zip(stores, retrained(starts, [(), *few], order), strict=True):
                    store.add(keys, losses[1:], losses[0], seconds)
                advance(len(few))


def retrained(starts: Sequence[Start], removals: Sequence[Removal], order: int) -> list[tuple[Tensor, float]]:
    """Of each chain over one pretraining, the losses of its queries without each: `[removals, queries]`; and seconds.

    An empty removal is the control.
    """
    started = time.process_time()
    first, steps = starts[0].chain[PRETRAIN], starts[0].steps(PRETRAIN)
    weights = torch.stack([leave_out(starts[0].examples, removal, 1.0) for removal in removals])
    pretrained = steps(first, weights, None, order)
    common, found = (time.process_time() - started) / len(starts), list[tuple[Tensor, float]]()
    for start in starts:
        started = time.process_time()
        last = start.chain[FINETUNE]
        ones = torch.ones(len(removals), len(last.stage.examples), dtype=torch.float64)
        tuned = start.steps(FINETUNE)(last, ones, pretrained, order)
        losses = torch.stack([start.query.loss(last, one_copy(tuned, place)) for place in range(len(removals))])
        found.append((losses, common + time.process_time() - started))
    return found


def _truth(start: Start, store: Store, protocol: Protocol, asked: Asked) -> Truth:
    subsets = protocol.subsets(start.examples, start.seed)
    names = list(subsets)
    repeated = tuple(place for place, name in enumerate(names) if protocol.in_orders(name))
    keys: dict[int, list[Key]] = {RECORDED_ORDER: [(RECORDED_ORDER, 1.0, subsets[name]) for name in names]}
    keys |= {order: [(order, 1.0, subsets[names[place]]) for place in repeated] for order in protocol.order_seeds}
    controls = {order: store.control(each) for order, each in keys.items()}

    def losses(order: int) -> Tensor:
        return torch.stack([store.effect(key) + controls[order] for key in keys[order]], dim=1)

    every = [key for each in keys.values() for key in each]
    others = list(protocol.order_seeds)
    facts = {
        **start.facts,
        **_step_by_step(start, subsets, store),
        "steps": {name: start.steps(name).steps for name in (PRETRAIN, FINETUNE)},
        "batches of": {name: start.steps(name).batch_size for name in (PRETRAIN, FINETUNE)},
        "held fixed": "start, that of the new head included; batches; rates; divisors",
        "digests": start.fingerprint(),
        "seconds of a retraining": store.seconds_of(every) / len(every),
        "versions": {name: version(name) for name in ("torch", "transformers", "peft", "stagetrace")},
        "hardware": hardware(torch.device("cpu")),
        "quick": asked.quick,
    }
    return Truth(
        start.name,
        start.seed,
        start.examples,
        start.queries,
        subsets,
        losses(RECORDED_ORDER),
        controls[RECORDED_ORDER],
        repeated,
        torch.stack([losses(order) for order in others]),
        torch.stack([controls[order] for order in others]),
        facts,
    )


def _step_by_step(start: Start, subsets: Mapping[str, Removal], store: Store) -> dict[str, object]:
    """How far the recorded training, repeated step by step without some subsets, is from the batched one."""
    few = [subsets[name] for name in list(subsets)[-1 : -1 - REPEATED * 2 : -2]]
    with tempfile.TemporaryDirectory() as folder:
        chain = start.recorded(Path(folder), RECORDED_ORDER)
        again = Retraining(chain, start.query, PRETRAIN, dict.fromkeys(chain.names, Rerun()))
        losses = again.losses([(), *few], 1.0, RECORDED_ORDER)
        traced = start.query.loss(chain.last)
    expected = torch.stack([store.effect((RECORDED_ORDER, 1.0, removal)) for removal in few])
    gap = float((losses[1:] - losses[0] - expected).abs().max() / expected.abs().max())
    return {
        "largest gap to the recording repeated step by step, of the largest change": gap,
        "losses of the traced model": traced.tolist(),
        "gap of the control to the traced model, of its loss": float(((losses[0] - traced).abs() / traced).max()),
    }

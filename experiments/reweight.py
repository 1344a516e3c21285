"""`reweight`: do weights that lower the loss on one half of a test set lower it on the other, and in other orders?

Two chains whose fine-tuning trains the embedding further, `cifar-updated` and `bert` (all parameters), and the training
whose derivative is exact there: both stages trained on by recorded steps, from where they were, with Adam's saved
state. For each seed (its own weights, batches, draw of examples and halves of the test set) the examples of both stages
are reweighted for the first half, and both stages are trained again with equal weights and with the new ones: in the
orders of the batches whose derivative was taken, and in others. The second half, which no derivative has seen, is what
measures. The halves are drawn before anything is trained.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch

from experiments import paper, records
from experiments.protocol import Prepared
from experiments.records import Record, over_seeds
from experiments.settings import Settings
from experiments.transformer_chains import experiment as transformers
from experiments.transformer_chains import stages
from stagetrace import Chain, Query, hf, reweight
from stagetrace.progress import Progress
from stagetrace.results.files import write_text
from stagetrace.results.jsonable import json_text, read_json
from stagetrace.reweighting import Reweighting
from stagetrace.reweighting.write import record as record_of
from stagetrace.validation.estimators.exact_steps import through_steps

NAME = "reweight"
SEEDS = 5
STEPS = 3
ORDERS = {"cifar-updated": (1,), "bert": (1, 3)}
"""Over how many orders of the batches the derivative is averaged: one, as of a single recording, and where that showed
no gain on unseen examples, three."""
CHECKED = (100,)
"""Seeds of the orders in which the weights are only checked."""
TEXTS = 2000
"""Test tweets, at most: half of them for the weights. `bert` itself measures with 500."""
CIFAR, BERT = paper.CIFAR_UPDATED, transformers.BERT


class Ready(NamedTuple):
    """A chain of one seed: how its stages are trained again in some orders, and both halves of its test set."""

    through: Callable[[Sequence[int]], Chain]
    target: Query
    held_out: Query
    facts: Mapping[str, Any]


def run(settings: Settings, progress: Progress) -> None:
    """Reweight, seed by seed; writes `CHAIN/seed-*/orders-*.json`, and after each seed `result.json`."""
    done: dict[str, dict[int, Record]] = {name: {} for name in CHAINS}
    for count in sorted({count for each in ORDERS.values() for count in each}):  # for every seed first
        for seed in range(settings.seed, settings.seed + SEEDS):
            for name, prepare in CHAINS.items():
                if count not in ORDERS[name]:
                    continue
                here = replace(settings, seed=seed, out=settings.out / name / f"seed-{seed}", root=settings.out)
                found = _one_seed(prepare, here, count, progress)
                orders = {**done[name].get(seed, found)["orders"], **found["orders"]}
                done[name][seed] = {**found, "orders": orders}
            chains = {name: list(seeds.values()) for name, seeds in done.items()}
            fields = {
                "sign_of_gains": "loss with equal weights less loss with the new ones, nats: + = the weights help",
                "protocol": {
                    "steps": STEPS,
                    "orders": {name: list(counts) for name, counts in ORDERS.items()},
                    "orders_that_only_check": list(CHECKED),
                    "trained_again": {"cifar-updated": dict(CIFAR.again), "bert": dict(BERT.again)},
                    "rate": {"cifar-updated": CIFAR.rate, "bert": BERT.rate},
                },
                "gains": {name: _gains(seeds) for name, seeds in chains.items()},
                "chains": chains,
            }
            records.write_result(NAME, settings, fields)


def halves_of(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The places of both halves, ascending, drawn by the seed."""
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    return order[: count // 2].sort().values, order[count // 2 :].sort().values


def _cifar(settings: Settings, progress: Progress) -> Ready:
    prepared = paper.prepare(CIFAR, settings, progress)
    test = prepared.data[1].test
    asked, unseen = (Query(test[h].dataset, batch_size=CIFAR.query_batch) for h in halves_of(len(test), settings.seed))
    return _ready(prepared, paper.fits(CIFAR, prepared), asked, unseen)


def _bert(settings: Settings, progress: Progress) -> Ready:
    recipe, name = replace(BERT.recipe, tests=TEXTS), stages.UPDATED
    prepared = stages.prepare(recipe, settings, (name,), progress)[name]
    rows, last = prepared.query.data.rows, prepared.chain.stages[-1]
    asked, unseen = (
        hf.query([rows[place] for place in half.tolist()], stage=last, batch_size=64)
        for half in halves_of(len(rows), settings.seed)
    )
    return _ready(prepared, transformers.fits(BERT, name, prepared), asked, unseen)


CHAINS: dict[str, Callable[[Settings, Progress], Ready]] = {CIFAR.name: _cifar, BERT.name: _bert}


def _ready(prepared: Prepared, fits: Mapping[str, Any], target: Query, held_out: Query) -> Ready:
    chain = prepared.chain
    return Ready(lambda seeds: through_steps(chain, chain.names[0], fits, seeds), target, held_out, prepared.facts)


def _one_seed(
    prepare: Callable[[Settings, Progress], Ready], settings: Settings, count: int, progress: Progress
) -> Record:
    """The weights of one seed for so many orders: found on disk, or now."""
    ready, path = prepare(settings, progress), settings.out / f"orders-{count}.json"
    if not path.exists():
        started, used = time.perf_counter(), time.process_time()
        result = reweight(
            ready.through(range(count)),
            ready.target,
            steps=STEPS,
            held_out=ready.held_out,
            check_orders=CHECKED,
            progress=progress,
        )
        seconds = {"seconds": time.perf_counter() - started, "cpu_seconds": time.process_time() - used}
        write_text(path, json_text(_of(result, seconds)))
    return {
        "seed": settings.seed,
        "training": ready.facts,
        "queries": {"target": len(ready.target.data), "held_out": len(ready.held_out.data)},
        "orders": {str(count): read_json(path)},
    }


def _of(result: Reweighting, seconds: Record) -> Record:
    weights = {
        stage: {
            "examples": len(each),
            "smallest": each.min().item(),
            "largest": each.max().item(),
            "share_at_0": (each == 0).double().mean().item(),
            "effective_examples": result.effective_examples(stage),
        }
        for stage, each in result.weights.items()
    }
    return {**record_of(result), "weights": weights, **seconds}


def _gains(seeds: Sequence[Record]) -> Record:
    """Over seeds, by the number of orders, of each half of the test set: in the orders that were used, and others."""

    def mean(found: Record, what: str, used: bool) -> float:
        gains = [-each["change"] for each in found[what] if each["used"] == used]
        return sum(gains) / len(gains)

    return {
        count: {
            what: {
                words: over_seeds(
                    [mean(seed["orders"][count], what, used) for seed in seeds if count in seed["orders"]]
                )
                for words, used in (("used", True), ("others", False))
            }
            for what in ("held_out", "target")
        }
        for count in seeds[0]["orders"]
    }

"""`predict`: every method of the library on every chain, kept as it is done, and written as prediction files."""

import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from benchmarks.two_stage.chains import CHAINS, FINETUNE, PRETRAIN, Asked, Start, families
from benchmarks.two_stage.methods import NATS, Method, Traced, averaged, exact_in, influence, mean_query, methods
from benchmarks.two_stage.predictions import FOLDER, Predictions, Truths
from benchmarks.two_stage.protocol import ESTIMATED_ORDERS, RECORDED_ORDER
from benchmarks.two_stage.truths import Truth, summed
from stagetrace import Chain
from stagetrace.errors import StagetraceWarning, refuse
from stagetrace.results.files import atomic
from stagetrace.validation.smoothness import smoothness

BEFOREHAND = "smoothness"
"""The folder of what the smoothness check said."""
AVERAGED = (1, 2, 4, 8)
PLAIN = f"exact, plain mean of {AVERAGED[-1]} other orders"


@final
@dataclass(frozen=True)
class Kept:
    """Effects that are computed, in `work/predicted/NAME/CHAIN-SEED.safetensors`, with their processor seconds."""

    folder: Path

    def found(self, name: str, truth: Truth) -> tuple[Tensor, float] | None:
        path = self._path(name, truth)
        if not path.exists():
            return None
        with safe_open(path, "pt") as file:  # pyright: ignore[reportUnknownVariableType]
            return file.get_tensor("effects"), float(file.metadata()["seconds"])

    def compute(self, name: str, truth: Truth, effects: Callable[[], Tensor]) -> None:
        """Compute what is not there."""
        if self.found(name, truth) is not None:
            return
        started = time.process_time()
        values = effects().double().cpu().contiguous()
        seconds = time.process_time() - started
        with atomic(self._path(name, truth)) as temporary:
            save_file({"effects": values}, temporary, {"seconds": repr(seconds)})

    def _path(self, name: str, truth: Truth) -> Path:
        return self.folder / name / f"{truth.chain}-{truth.seed}.safetensors"


def predict(asked: Asked, truths: Truths, only: Sequence[str], out: Path = FOLDER) -> Iterator[str]:
    """Compute what is missing, chain by chain, and write every method's file anew; yields what was done."""
    kept = Kept(asked.work / "predicted")
    wanted = [method for method in methods() if not only or method.file in only]
    orders = not only or "orders" in only
    singles = len(next(iter(truths.values())).queries) - 1
    for seed in sorted({seed for _, seed in truths}):
        for name, family in families().items():
            of_family = [truth for (chain, of), truth in truths.items() if of == seed and CHAINS[chain] == name]
            if all(_is_done(truth, wanted, kept, orders=orders) for truth in of_family):
                continue
            for start in family(asked, seed, singles):
                truth = truths.get((start.name, seed))
                if truth is not None:
                    _check_same(start, truth)
                    _chain(start, truth, wanted, kept, orders=orders)
                    yield f"{start.name}, seed {seed}"
    for method in wanted:
        yield from write_file(method.name, method.unit, method.file, found_in(kept, method.file, truths), truths, out)
    if orders:
        for count in AVERAGED:
            name = f"exact, mean of {count} other order{'s' if count > 1 else ''}"
            found = _averaged(kept, count, truths, averaged)
            yield from write_file(name, NATS, f"exact-orders-{count}", found, truths, out)
        found = _averaged(kept, AVERAGED[-1], truths, lambda each: torch.stack(list(each)).mean(dim=0))
        yield from write_file(PLAIN, NATS, f"exact-orders-{AVERAGED[-1]}-plain", found, truths, out)


def _is_done(truth: Truth, wanted: Sequence[Method], kept: Kept, *, orders: bool) -> bool:
    """Whether nothing is left to compute for a chain; one without texts is never asked for methods that need them."""
    names = [method.file for method in wanted if not method.texts or CHAINS[truth.chain] != "cifar"]
    if orders:
        names += ["one-training", "one-query", BEFOREHAND, *(f"order-{order}" for order in ESTIMATED_ORDERS)]
    return all(kept.found(name, truth) is not None for name in names)


def _chain(start: Start, truth: Truth, wanted: Sequence[Method], kept: Kept, *, orders: bool) -> None:
    with tempfile.TemporaryDirectory() as folder:
        chain = start.recorded(Path(folder), RECORDED_ORDER)
        for method in wanted:
            if not method.texts or start.text is not None:
                kept.compute(method.file, truth, lambda method=method: method.effects(Traced(start, chain)))
        if orders:
            kept.compute("one-training", truth, lambda: _training(start))
            kept.compute("one-query", truth, lambda: influence(chain, mean_query(start)))
            kept.compute(BEFOREHAND, truth, lambda: _said(chain, start))
    for order in ESTIMATED_ORDERS if orders else ():
        with tempfile.TemporaryDirectory() as folder:
            kept.compute(f"order-{order}", truth, lambda order=order, at=folder: exact_in(start, Path(at), order))


def _said(chain: Chain, start: Start) -> Tensor:
    """What the smoothness check says before any truth: a row a size, `[sizes, 3]`: size, r expected, r at least."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", StagetraceWarning)
        found = smoothness(chain, mean_query(start), PRETRAIN)
    return torch.tensor([[tried.size, tried.expected, tried.at_least] for tried in found.tried])


def _training(start: Start) -> Tensor:
    """Both stages trained once, nothing recorded: what the seconds of a query are measured in."""
    first, last = start.chain.bound_stages
    one = [torch.ones(1, len(bound.stage.examples), dtype=torch.float64) for bound in (first, last)]
    pretrained = start.steps(PRETRAIN)(first, one[0], None, RECORDED_ORDER)
    _ = start.steps(FINETUNE)(last, one[1], pretrained, RECORDED_ORDER)
    return torch.zeros(1)


def found_in(kept: Kept, name: str, truths: Truths) -> dict[tuple[str, int], tuple[Tensor, float]]:
    """Effects and seconds of a method, of what it has done."""
    found = {key: kept.found(name, truth) for key, truth in truths.items()}
    return {key: each for key, each in found.items() if each is not None}


def _averaged(
    kept: Kept, count: int, truths: Truths, mean: Callable[[Sequence[Tensor]], Tensor]
) -> dict[tuple[str, int], tuple[Tensor, float]]:
    each = [found_in(kept, f"order-{order}", truths) for order in ESTIMATED_ORDERS[:count]]
    return {
        key: (mean([one[key][0] for one in each]), sum(one[key][1] for one in each))
        for key in truths
        if all(key in one for one in each)
    }


def write_file(
    name: str,
    unit: str,
    file: str,
    found: Mapping[tuple[str, int], tuple[Tensor, float]],
    truths: Truths,
    out: Path,
) -> Iterator[str]:
    """The file of a method, of the chains that it has done for every seed."""
    done = {chain for chain, _ in truths if all(key in found for key in truths if key[0] == chain)}
    changes, seconds = dict[tuple[str, int, str], Tensor](), dict[str, list[float]]()
    for key, (effects, spent) in found.items():
        if key[0] in done:
            truth = truths[key]
            predicted = summed(effects, list(truth.subsets.values()))
            changes |= {(*key, query): row for query, row in zip(truth.queries, predicted, strict=False)}
            seconds.setdefault(key[0], []).append(spent)
    if changes:
        means = {chain: sum(each) / len(each) for chain, each in seconds.items()}
        yield f"written: {Predictions(name, unit, changes, means).write(out / f'{file}.parquet', truths)}"


def costs(kept: Kept, truths: Truths) -> list[dict[str, Any]]:
    """Seconds of a training, of one query and of all, by chain: the mean over its seeds."""
    rows = list[dict[str, Any]]()
    for chain in dict.fromkeys(chain for chain, _ in truths):
        keys = [key for key in truths if key[0] == chain]
        names = ("one-training", "one-query", methods()[0].file)
        found = [[kept.found(name, truths[key]) for key in keys] for name in names]
        if any(one is None for each in found for one in each):
            continue
        training, one, every = (sum(each[1] for each in seeds if each) / len(seeds) for seeds in found)
        further = len(truths[keys[0]].queries) - 1
        rows.append(
            {
                "chain": chain,
                "training s": training,
                "one query s": one,
                "one query, in trainings": one / training,
                f"{further} more s": every - one,
                "each further query, in trainings": (every - one) / further / training,
            }
        )
    return rows


def _check_same(start: Start, truth: Truth) -> None:
    """Refuse to predict for a chain that is not the truth's."""
    before = truth.facts["digests"]
    for here, there in zip(start.fingerprint(), before, strict=True):
        if here["data"] != there["data"] or here["model"]["sha256"] != there["model"]["sha256"]:
            refuse(
                f"chain '{start.name}', seed {start.seed}: stage '{here['name']}' starts from other data or another "
                "checkpoint than the committed truth's; give the --work folder that the truths were made in"
            )

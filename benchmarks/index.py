"""`index`: what an index keeps, what a search by it finds, and what both cost.

Digits: the trained network of 11,780 parameters over 22,731 images, curvature and damping as in `queries`, test images
as queries. Recall is the mean over queries and both ends of the ranking, by the exact scores of every example. `unseen`
is among the examples that the basis was not made of; `other half` has a basis of one half's examples and looks among
the other half's, whatever their loss.

A million: digits drawn with replacement, each shifted by up to two pixels and scaled, so that no two are the same.
Seconds of a build are the processor's, one thread; those of a search are of the clock, of its second call, with what
looking up takes of the processor beside them, the least of three.

What a language model's gradients need is looked at by `benchmarks/index_texts.py`.
"""

import resource
import tempfile
import time
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor
from torch.utils.data import Dataset, TensorDataset

from benchmarks.report import Report, Row
from benchmarks.setting import small_network
from experiments.tasks import Task
from stagetrace import Chain, GaussNewton, Lanczos, Query, Shift, Stage
from stagetrace.index import Index, build
from stagetrace.index.basis import draw, losses_of, principal
from stagetrace.index.codes import Products, encode
from stagetrace.index.gradients import ExampleGradients
from stagetrace.index.lookup import lookup
from stagetrace.index.recall import Recall, measured
from stagetrace.index.walk import adjoints
from stagetrace.objectives import Classification
from stagetrace.progress import Silent
from stagetrace.tracing import describe

DAMPING, BATCH, QUERIES = 0.01, 512, 20
NUMBERS = (256, 512, 996)
MILLION = 1_000_000
SHIFT = 2
DRAWN_FROM_HALF = 1536


def digits(report: Report) -> None:
    """`index`: recall by numbers kept, and what a build takes."""
    asked = report.asked
    task = asked.digits()
    model = small_network(asked, task)
    chain = Chain(Stage("pretrain", model=model, objective=Classification(), data=task.train.dataset, batch_size=BATCH))
    query = Query(TensorDataset(task.test.pixels, task.test.labels))
    table, recalls = list[Row](), list[Row]()
    for numbers in NUMBERS:
        with tempfile.TemporaryDirectory() as folder:
            started = time.process_time()
            index = build(
                chain,
                query,
                Path(folder) / "index",
                numbers=numbers,
                queries=QUERIES,
                seed=asked.seed,
                **_solved(asked),
            )
            seconds = time.process_time() - started
            held = index.stages["pretrain"]
            size = sum(path.stat().st_size for path in Path(folder).rglob("*.safetensors"))
            found = _search(index, _one(task))
        table.append(
            {
                "numbers": held.numbers,
                "bytes an example": held.bytes_each,
                "with the basis, MB": size / 2**20,
                "build, processor s": seconds,
                **found,
            }
        )
        assert held.recall is not None
        recalls += _rows(held.numbers, "unseen", held.recall, held.recall.unseen)
        recalls += _rows(held.numbers, "all", held.recall, held.recall.found)
        half = _other_half(report, chain, query, numbers)
        recalls += _rows(held.numbers, "other half", half, half.found)
    report.table(f"{len(task.train.pixels):,} digits: what is kept and what it takes", table, "digits")
    report.table("Recall of the top 100 by examples rescored, half from either end", recalls, "digits_recall")
    best = max(row["200"] for row in recalls if row["among"] == "other half")
    report.target("misses of the index alone (200 named), other half", 1 - best, 0.05)


def million(report: Report) -> None:
    """`index-million`: a build and a search over a million examples."""
    asked = report.asked
    task = asked.digits()
    model = small_network(asked, task)
    total = 20_000 if asked.quick else MILLION
    data = Shifted(task.train.pixels, task.train.labels, total, asked.seed)
    chain = Chain(Stage("pretrain", model=model, objective=Classification(), data=data, batch_size=BATCH))
    query = Query(TensorDataset(task.test.pixels, task.test.labels))
    before = _peak()
    with tempfile.TemporaryDirectory() as folder:
        started = time.process_time()
        index = build(chain, query, Path(folder) / "index", queries=QUERIES, seed=asked.seed, **_solved(asked))
        seconds = time.process_time() - started
        built = _peak()
        size = sum(path.stat().st_size for path in Path(folder).rglob("*.safetensors"))
        found = _search(index, _one(task))
        started = time.perf_counter()
        Index.open(Path(folder) / "index", chain)
        opened = time.perf_counter() - started
    held = index.stages["pretrain"]
    row: Row = {
        "examples": total,
        "bytes an example": held.bytes_each,
        "on the disk, MB": size / 2**20,
        "build, processor s": seconds,
        "us an example": 1e6 * seconds / total,
        "peak grown by, MB": built - before,
        "opening, s": opened,
        **found,
    }
    report.table("A million examples", [row], "million")
    assert held.recall is not None
    recalls = _rows(held.numbers, "unseen", held.recall, held.recall.unseen)
    report.table("Recall of the top 100", recalls, "million_recall")
    report.target("bytes an example", held.bytes_each, 1000)
    report.target(f"processor s of looking up a query among {total:,}", found["looking up, processor s"], 1.0)


@final
class Shifted(Dataset[Any]):
    """Images drawn with replacement, each shifted and scaled by its index's own draw."""

    def __init__(self, pixels: Tensor, labels: Tensor, total: int, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self._pixels, self._labels = torch.nn.functional.pad(pixels, (SHIFT,) * 4, value=float(pixels.min())), labels
        self._side = pixels.shape[-1]
        self._base = torch.randint(len(pixels), (total,), generator=generator)
        self._moved = torch.randint(2 * SHIFT + 1, (total, 2), generator=generator)
        self._scale = 0.8 + 0.4 * torch.rand(total, generator=generator)

    def __len__(self) -> int:
        return len(self._base)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: list[int]) -> list[tuple[Tensor, Tensor]]:
        found: list[tuple[Tensor, Tensor]] = []
        for index in indices:
            base, (down, right) = int(self._base[index]), self._moved[index].tolist()
            image = self._pixels[base, :, down : down + self._side, right : right + self._side]
            found.append((image * self._scale[index], self._labels[base]))
        return found


def _solved(asked: Any) -> dict[str, Any]:
    return {"curvature": GaussNewton(examples=asked.hessian_examples), "solver": Lanczos(DAMPING, filter=Shift)}


def _one(task: Task) -> Query:
    return Query(TensorDataset(task.test.pixels[:1], task.test.labels[:1]))


def _search(index: Index, query: Query) -> Row:
    """Seconds of the clock of a search's second call."""
    options: dict[str, Any] = {"curvature": GaussNewton(examples=1000), "solver": Lanczos(DAMPING, filter=Shift)}
    index.search(query, **options)
    hits = index.search(query, **options)["pretrain"]
    held, taken = index.stages["pretrain"], list[float]()
    scores = index.stores["pretrain"].scorer(torch.randn(held.parameters, 1))
    for _ in range(3):
        started = time.process_time()
        lookup(index.folder, "pretrain", held, scores, hits.rescored)
        taken.append(time.process_time() - started)
    seconds = {f"{name}, s": value for name, value in hits.seconds.items()}
    return {"rescored": hits.rescored, **seconds, "looking up, processor s": min(taken)}


def _rows(numbers: int, among: str, recall: Recall, shares: tuple[float, ...]) -> list[Row]:
    steps = {str(number): share for number, share in zip(recall.rescored, shares, strict=bool(shares))}
    return [{"numbers": numbers, "among": among, **steps}]


def _other_half(report: Report, chain: Chain, query: Query, numbers: int) -> Recall:
    """A basis of the even examples, recall among the odd ones."""
    asked, bound = report.asked, chain["pretrain"]
    solved = _solved(asked)
    chosen = list(range(0, len(query.data), max(1, len(query.data) // QUERIES)))[:QUERIES]
    some = TensorDataset(*query.data[chosen])
    curvatures = describe.by_stage(chain, solved["curvature"], solved["curvature"], "curvature")
    solvers = describe.by_stage(chain, solved["solver"], solved["solver"], "solver")
    ((_, solution),) = adjoints(chain, Query(some, reduction="none"), ["pretrain"], curvatures, solvers, Silent())
    gradients = ExampleGradients(bound.risk)
    losses = losses_of(bound.risk, lambda *_, **__: None)
    even, odd = range(0, len(losses), 2), range(1, len(losses), 2)
    drawn = [2 * place for place in draw(losses[0::2], DRAWN_FROM_HALF, asked.seed)]
    assert set(drawn) <= set(even)
    basis = principal(gradients, drawn, numbers)
    columns = gradients.columns(torch.cat([basis, solution.value.to(basis)], dim=1))
    products = Products(basis.mT @ solution.value.to(basis))
    exact, said = list[Tensor](), list[Tensor]()
    for _, _, found in gradients.products(odd, columns):
        exact.append(-found[:, basis.shape[1] :])
        said.append(products.scores(*encode(found[:, : basis.shape[1]], "int8")))
    recall = measured(torch.cat(exact).mT, torch.cat(said).mT, [])
    assert recall is not None
    return recall


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

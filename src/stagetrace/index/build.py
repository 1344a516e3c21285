"""`build`: one pass over every stage's examples, and what it leaves on the disk."""

import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor

from stagetrace.curvature.auto import Auto
from stagetrace.curvature.choices import Curvature
from stagetrace.curvature.subset import seeded_subset
from stagetrace.errors import refuse
from stagetrace.index.basis import DRAWN, NUMBERS
from stagetrace.index.choose import Asked, chosen, fitted, opened_store
from stagetrace.index.codes import Kind
from stagetrace.index.files import (
    PART,
    adjoints_name,
    basis_name,
    codes_name,
    exact_name,
    part_count,
    read_tensors,
    write_tensors,
)
from stagetrace.index.folder import begun
from stagetrace.index.gradients import ExampleGradients
from stagetrace.index.index import Index
from stagetrace.index.manifest import IndexManifest, StageIndex
from stagetrace.index.recall import measured
from stagetrace.index.store import Held, Store, StoreKind
from stagetrace.index.walk import adjoints, indexable
from stagetrace.parallel import world
from stagetrace.progress import KEPT, Bars, Progress, Silent
from stagetrace.results.files import sha256_of
from stagetrace.results.jsonable import to_json
from stagetrace.results.lock import Lock
from stagetrace.results.manifest import versions
from stagetrace.solvers.base import Solver
from stagetrace.solvers.lanczos import Lanczos
from stagetrace.solvers.together import MANY, RANKING
from stagetrace.stages.bound import BoundStage
from stagetrace.stages.chain import Chain
from stagetrace.stages.fingerprint import fingerprint_examples, fingerprint_model
from stagetrace.stages.modes import in_ordinary_modes
from stagetrace.stages.stage import check_count
from stagetrace.tracing.arguments import check_arguments, check_options
from stagetrace.tracing.describe import by_stage, describe
from stagetrace.tracing.ensemble import trained_seeds
from stagetrace.tracing.query import Query
from stagetrace.tracing.trace import checked
from stagetrace.tracing.usual import usual_solvers

__all__ = ["QUERIES", "build"]

QUERIES = 20
"""Query examples by which recall is measured."""


@in_ordinary_modes
def build(
    chain: Chain,
    query: Query,
    out: str | Path,
    *,
    of: Iterable[str] | str | None = None,
    store: Asked = "auto",
    numbers: int = NUMBERS,
    codes: Kind = "int8",
    drawn: int = DRAWN,
    seed: int = 0,
    queries: int = QUERIES,
    curvature: Curvature | str | Mapping[str, Curvature | str] | None = None,
    solver: Solver | str | Mapping[str, Solver | str] | None = None,
    memory: int = 4 * 2**30,
    target: str | None = None,
    progress: Progress | bool = False,
) -> Index:
    """Index the examples of a chain's stages, so that later queries look at few of them.

    Of every example's gradient some numbers are kept, in one byte each. A search multiplies these with a query's
    adjoint and computes the scores of those at both ends of that ranking exactly. Which numbers, says the store:

    components: coordinates in the principal components of some gradients of the stage, drawn by the root of the loss.
    words: of each word of a sequence some numbers of its row of the embedding's gradient, and EK-FAC's coordinates of
    the largest eigenvalues elsewhere, half of the bytes each; on as many examples as `EKFAC` takes, or `drawn`.

    The same call continues where a killed one stopped; an index that is complete is only opened.

    Args:
        chain: the stages; those that are differentiated through recorded steps are passed through and not indexed.
        query: its examples, each by itself, are what recall is measured with; a search may ask anything else.
        out: the folder.
        of: names of the stages whose examples are indexed; None takes every stage that can be.
        store: "components" or "words"; "auto" takes words where the examples are sequences that are looked up in an
            embedding table and EK-FAC knows the loss, and components elsewhere.
        numbers: kept of each example, at most, words' own numbers among them; 996 and a scale of four bytes are 1,000
            bytes an example, however long it is.
        codes: "int8", or "float32" without rounding.
        drawn: gradients that the store is fitted on, at most.
        seed: of the draws.
        queries: query examples that recall is measured with, drawn by the seed; 0 measures nothing.
        curvature, solver: as for `trace`, for these queries.
        memory: bytes for the drawn gradients and the basis; of a large model fewer gradients are drawn, and so fewer
            numbers kept, which the notes say.
        target: the TARGET of the command line, kept for `stagetrace search`.
        progress: True draws progress bars on standard error.

    Raises:
        DescriptionError: a setting does not fit the chain; or the model is too large for a basis in this memory.
        DataError, DifferentiationError, SolveError: as `trace`.
        ResultsError: `out` holds something else or another index; the message lists what differs.

    Source: the two phases are those of Grosse et al. (2023), section 3.2, and Choe et al. (2024); which basis, by
    `benchmarks/index.py`.
    """
    check_arguments(chain, query)
    check_options(of, out, progress)
    for value, name, least in ((numbers, "numbers", 1), (drawn, "drawn", 1), (queries, "queries", 0)):
        check_count(value, f"index.build({name}=...)", least=least)
    check_count(memory, "index.build(memory=...), in bytes,")
    if codes not in ("int8", "float32"):
        refuse(f"index.build(codes=...) must be 'int8' or 'float32', got {codes!r}")
    if store not in ("auto", "components", "words"):
        refuse(f"index.build(store=...) must be 'auto', 'components' or 'words', got {store!r}")
    if world().size > 1:
        refuse("an index is built by one process; start stagetrace index without torchrun")
    if trained_seeds(chain):
        refuse("an index is of stages that were trained, and this chain's are trained by the library; type trace(...)")
    bars = progress if not isinstance(progress, bool) else Bars() if progress else Silent()
    chain = chain.refreshed()
    names = [of] if isinstance(of, str) else None if of is None else list(of)
    chain.check_names(names or (), "of")
    stages = indexable(chain, names)
    measuring = _measuring(query, queries, seed)
    curvatures = by_stage(chain, curvature, Auto(), "curvature")
    usual = Lanczos(rtol=RANKING) if len(measuring.data) >= MANY else Lanczos()
    solvers = by_stage(chain, solver, usual, "solver", usual_solvers(chain, curvatures))
    checked(chain, query, bars)
    description = describe(chain, measuring, curvatures, solvers, stages, parts=False, progress=bars)
    settings: dict[str, Any] = {
        "numbers": numbers,
        "codes": codes,
        "drawn": drawn,
        "seed": seed,
        "queries": queries,
        "memory": memory,
    }
    gradients = {name: ExampleGradients(chain[name].risk) for name in stages}
    kinds: dict[str, StoreKind] = {name: chosen(chain[name], gradients[name], store, settings) for name in stages}
    if "words" in kinds.values():  # left out of others, which then are those of format 1
        settings["store"] = kinds
    with begun(Path(out), {**description, "index": settings}, target) as (manifest, lock):
        if lock is not None:
            plan = _Build(chain, Path(out), manifest, lock, settings, bars)
            if queries:
                plan.solve(measuring, stages, curvatures, solvers)
            found = {name: plan.stage(chain[name], gradients[name], kinds[name]) for name in stages}
            plan.finish(found)
    return Index.open(out, chain)


def _measuring(query: Query, queries: int, seed: int) -> Query:
    """The examples of the query that recall is measured with, each a query by itself."""
    chosen = list(seeded_subset(len(query.data), max(1, queries), seed))
    alone = query if query.reduction == "none" else replace(query, contrast=None)
    return alone.each_of(chosen)


@final
class _Build:
    """The steps of a build in a folder, each skipped where its files are there."""

    def __init__(
        self,
        chain: Chain,
        folder: Path,
        manifest: IndexManifest,
        lock: Lock,
        settings: Mapping[str, Any],
        progress: Progress,
    ) -> None:
        self.chain, self.folder, self.manifest, self.lock = chain, folder, manifest, lock
        self.settings, self.progress = settings, progress
        self.index = manifest.index

    def solve(
        self, query: Query, stages: list[str], curvatures: Mapping[str, Curvature], solvers: Mapping[str, Solver]
    ) -> None:
        """The adjoints of the queries that recall is measured with."""
        if all((self.folder / adjoints_name(name)).exists() for name in stages):
            return
        for bound, solution in adjoints(self.chain, query, stages, curvatures, solvers, self.progress):
            self._write(adjoints_name(bound.name), bound.name, {"adjoints": solution.value})

    def stage(self, bound: BoundStage, gradients: ExampleGradients, kind: StoreKind) -> StageIndex:
        """What is kept of a stage's examples, and what its recall is."""
        store = self._store(bound, gradients, kind)
        kept = self._kept(bound, store)
        total, codes = len(bound.risk.examples), self.settings["codes"]
        return StageIndex(
            n_examples=total,
            parameters=bound.trained.size,
            numbers=store.numbers,
            codes=codes,
            bytes_each=store.bytes_each(codes),
            drawn=len(store.drawn),
            model=str(fingerprint_model(bound.stage.model)["sha256"]),
            ends=str(fingerprint_examples(bound.risk.examples, read=False)["ends"]),
            recall=measured(torch.cat(kept.exact).mT, torch.cat(kept.said).mT, store.drawn) if kept.said else None,
            notes=tuple(store.notes(bound, self.settings, kept.crowded)),
            store=kind,
            words=store.words,
            bytes_mean=kept.bytes / total if store.words else None,
        )

    def finish(self, stages: Mapping[str, StageIndex]) -> None:
        """Record the digest of every file, and declare the index complete."""
        self.lock.check()
        names = [basis_name(stage) for stage in stages]
        names += [
            codes_name(stage, number) for stage, each in stages.items() for number in range(part_count(each.n_examples))
        ]
        self.manifest = replace(
            self.manifest,
            status="complete",
            stages=dict(stages),
            statistics=to_json({"bytes": sum((self.folder / name).stat().st_size for name in names)}),
            versions=versions(),
            files={name: sha256_of(self.folder / name) for name in names},
        )
        self.manifest.write(self.folder)
        shutil.rmtree(self.folder / "measuring", ignore_errors=True)

    def _store(self, bound: BoundStage, gradients: ExampleGradients, kind: StoreKind) -> Store:
        path = self.folder / basis_name(bound.name)
        if not path.exists():
            self._write(
                basis_name(bound.name), bound.name, fitted(kind, bound, gradients, self.settings, self.progress)
            )
        return opened_store(kind, gradients, read_tensors(path, self.index, bound.name))

    def _kept(self, bound: BoundStage, store: Store) -> "_Kept":
        """What is kept of every example; where recall is measured its exact and approximate scores too."""
        name, total, kept = bound.name, len(bound.risk.examples), _Kept()
        measuring, adjoints = bool(self.settings["queries"]), bound.trained.zeros(0)
        if measuring:
            adjoints = read_tensors(self.folder / adjoints_name(name), self.index, name)["adjoints"]
            adjoints = adjoints.to(bound.trained.device)
        encode, scores = store.encoder(self.settings["codes"], adjoints), store.scorer(adjoints)
        with self.progress.task(f"indexing {bound.stage.where}", total, "examples") as advance:
            for number in range(part_count(total)):
                indices = range(number * PART, min(total, (number + 1) * PART))
                places = codes_name(name, number), exact_name(name, number)
                if not all((self.folder / place).exists() for place in places[: 2 if measuring else 1]):
                    tensors, products = encode(indices)
                    self._write(places[0], name, tensors)
                    self._write(places[1], name, {"exact": -products.float()})
                    advance(len(indices))
                else:
                    advance(len(indices), note=KEPT)
                held = read_tensors(self.folder / places[0], self.index, name)
                kept.count(store, held)
                if measuring:
                    kept.said.append(scores(held))
                    kept.exact.append(read_tensors(self.folder / places[1], self.index, name)["exact"])
        return kept

    def _write(self, name: str, stage: str, tensors: Mapping[str, Tensor]) -> None:
        self.lock.check()
        write_tensors(self.folder / name, self.index, stage, tensors)


@final
@dataclass
class _Kept:
    """What a pass over a stage's examples found: scores `[m, queries]` part by part, and what is kept in all."""

    exact: list[Tensor] = field(default_factory=list[Tensor])
    said: list[Tensor] = field(default_factory=list[Tensor])
    bytes: int = 0
    crowded: int = 0

    def count(self, store: Store, held: Held) -> None:
        """Another part."""
        self.bytes += sum(tensor.nbytes for tensor in held.values())
        self.crowded += store.crowded(held)

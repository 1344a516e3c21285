"""`build`: one pass over every stage's examples, and what it leaves on the disk."""

import shutil
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor
from torch.utils.data import Subset

from stagetrace.curvature.auto import Auto
from stagetrace.curvature.choices import Curvature
from stagetrace.curvature.subset import seeded_subset
from stagetrace.errors import refuse
from stagetrace.index.basis import DRAWN, FEWEST, NUMBERS, draw, losses_of, principal, room
from stagetrace.index.codes import Kind, Products, bytes_each, encode
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
from stagetrace.taps.gradients import wide
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

    Of every example's gradient its coordinates in a basis are kept, in one byte each: the principal components of some
    gradients of the stage, drawn by the square root of the loss. A search multiplies these with a query's adjoint and
    computes the scores of those at both ends of that ranking exactly.

    The same call continues where a killed one stopped; an index that is complete is only opened.

    Args:
        chain: the stages; those that are differentiated through recorded steps are passed through and not indexed.
        query: its examples, each by itself, are what recall is measured with; a search may ask anything else.
        out: the folder.
        of: names of the stages whose examples are indexed; None takes every stage that can be.
        numbers: kept of each example, at most; 996 and a scale of four bytes are 1,000 bytes an example.
        codes: "int8", or "float32" without rounding.
        drawn: gradients that the basis is made of, at most.
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
    settings = {"numbers": numbers, "codes": codes, "drawn": drawn, "seed": seed, "queries": queries, "memory": memory}
    for name in stages:
        _drawn(chain[name], settings)  # what does not fit is refused before anything is solved
    with begun(Path(out), {**description, "index": settings}, target) as (manifest, lock):
        if lock is not None:
            plan = _Build(chain, Path(out), manifest, lock, settings, bars)
            if queries:
                plan.solve(measuring, stages, curvatures, solvers)
            found = {name: plan.stage(chain[name]) for name in stages}
            plan.finish(found)
    return Index.open(out, chain)


def _measuring(query: Query, queries: int, seed: int) -> Query:
    """The examples of the query that recall is measured with, each a query by itself."""
    chosen = list(seeded_subset(len(query.data), max(1, queries), seed))
    return replace(query, data=Subset(query.data, chosen), reduction="none")


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

    def stage(self, bound: BoundStage) -> StageIndex:
        """Basis and codes of a stage, and what its recall is."""
        gradients = ExampleGradients(bound.risk)
        basis, drawn, notes = self._basis(bound, gradients)
        exact, said = self._codes(bound, gradients, basis)
        kind: Kind = self.settings["codes"]
        return StageIndex(
            n_examples=len(bound.risk.examples),
            parameters=bound.trained.size,
            numbers=basis.shape[1],
            codes=kind,
            bytes_each=bytes_each(basis.shape[1], kind),
            drawn=len(drawn),
            model=str(fingerprint_model(bound.stage.model)["sha256"]),
            ends=str(fingerprint_examples(bound.risk.examples, read=False)["ends"]),
            recall=None if exact is None or said is None else measured(exact, said, drawn),
            notes=tuple(notes),
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

    def _basis(self, bound: BoundStage, gradients: ExampleGradients) -> tuple[Tensor, list[int], list[str]]:
        path = self.folder / basis_name(bound.name)
        count, notes = _drawn(bound, self.settings)
        if not path.exists():
            total = len(bound.risk.examples)
            with self.progress.task(f"losses of {bound.stage.where}", total, "examples") as advance:
                losses = losses_of(bound.risk, advance)
            drawn = draw(losses, count, self.settings["seed"])
            with self.progress.task(f"basis of {bound.stage.where}", 1, "bases") as advance:
                basis = principal(gradients, drawn, self.settings["numbers"])
                advance(1)
            self._write(basis_name(bound.name), bound.name, {"basis": basis.float(), "drawn": torch.tensor(drawn)})
        found = read_tensors(path, self.index, bound.name)
        basis, drawn = found["basis"], found["drawn"].tolist()
        if basis.shape[1] < self.settings["numbers"] and len(drawn) == min(
            self.settings["drawn"], len(bound.risk.examples)
        ):
            notes.append(f"the gradients span {basis.shape[1]:,} directions beyond rounding, so no more are kept")
        return basis, drawn, notes

    def _codes(
        self, bound: BoundStage, gradients: ExampleGradients, basis: Tensor
    ) -> tuple[Tensor | None, Tensor | None]:
        """The codes of every example; exact and approximate scores `[queries, n]` where recall is measured."""
        name, total, adjoint = bound.name, len(bound.risk.examples), None
        if self.settings["queries"]:
            adjoint = read_tensors(self.folder / adjoints_name(name), self.index, name)["adjoints"].to(basis)
        columns = gradients.columns(basis if adjoint is None else torch.cat([basis, adjoint], dim=1))
        queries = None if adjoint is None else Products(basis.mT @ adjoint)
        kind: Kind = self.settings["codes"]
        exact, said = list[Tensor](), list[Tensor]()
        with self.progress.task(f"indexing {bound.stage.where}", total, "examples") as advance:
            for number in range(part_count(total)):
                indices = range(number * PART, min(total, (number + 1) * PART))
                places = codes_name(name, number), exact_name(name, number)
                if not all((self.folder / place).exists() for place in places[: 1 if adjoint is None else 2]):
                    found = [each for _, _, each in gradients.products(indices, columns)]
                    products = torch.cat(found)
                    coded, scales = encode(products[:, : basis.shape[1]], kind)
                    self._write(places[0], name, {"codes": coded, "scales": scales})
                    self._write(places[1], name, {"exact": -products[:, basis.shape[1] :].float()})
                    advance(len(indices))
                else:
                    advance(len(indices), note=KEPT)
                held = read_tensors(self.folder / places[0], self.index, name)
                if queries is not None:
                    said.append(queries.scores(held["codes"], held["scales"]))
                    exact.append(read_tensors(self.folder / places[1], self.index, name)["exact"])
        return (torch.cat(exact).mT, torch.cat(said).mT) if queries is not None else (None, None)

    def _write(self, name: str, stage: str, tensors: Mapping[str, Tensor]) -> None:
        self.lock.check()
        write_tensors(self.folder / name, self.index, stage, tensors)


def _drawn(bound: BoundStage, settings: Mapping[str, Any]) -> tuple[int, list[str]]:
    """How many gradients the basis is made of, and what to say where they are fewer than was asked for.

    Raises:
        DescriptionError: they would be too few.
    """
    wanted = min(settings["drawn"], len(bound.risk.examples))
    itemsize = wide(torch.empty(0, dtype=bound.trained.dtype)).element_size()
    fits = room(bound.trained.size, itemsize, settings["memory"])
    if fits >= wanted:
        return wanted, []
    if fits < FEWEST:
        least = 2 * FEWEST * itemsize * bound.trained.size / 2**30
        refuse(
            f"{bound.stage.where} has {bound.trained.size:,} parameters: a basis of {FEWEST} gradients takes "
            f"{least:.1f} GiB, and memory is {settings['memory'] / 2**30:.1f} GiB; give more (--memory), or score "
            "instead (stagetrace score)"
        )
    return fits, [
        f"the basis is made of {fits:,} gradients, not of {wanted:,}, which do not fit in the memory that was given; "
        "more may rank better"
    ]

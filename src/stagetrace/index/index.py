"""`Index`: an index that was built, with the chain that it is of, ready to be searched."""

import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import final

import torch
from torch import Tensor

from stagetrace.curvature.auto import Auto
from stagetrace.curvature.choices import Curvature
from stagetrace.errors import ResultsError, refuse
from stagetrace.index.agreement import check_kept, check_recorded
from stagetrace.index.choose import opened_store
from stagetrace.index.files import basis_name, check_files, read_tensors
from stagetrace.index.gradients import ExampleGradients
from stagetrace.index.hits import Hits, joined_hits
from stagetrace.index.lookup import lookup
from stagetrace.index.manifest import IndexManifest, StageIndex, read_index_manifest
from stagetrace.index.recall import tried
from stagetrace.index.store import Store
from stagetrace.index.walk import adjoints
from stagetrace.progress import Bars, Progress, Silent
from stagetrace.results.parts import Part
from stagetrace.results.ranking import Ranking, joined, ranked
from stagetrace.solvers.base import Solution, Solver
from stagetrace.solvers.lanczos import Lanczos
from stagetrace.stages.bound import BoundStage
from stagetrace.stages.chain import Chain
from stagetrace.stages.modes import in_ordinary_modes
from stagetrace.stages.stage import check_count
from stagetrace.tracing.arguments import check_arguments, check_options
from stagetrace.tracing.blocks import blocks
from stagetrace.tracing.describe import by_stage
from stagetrace.tracing.query import Query
from stagetrace.tracing.trace import checked
from stagetrace.tracing.usual import usual_solvers

__all__ = ["Index"]


@final
class Index:
    """A folder that `build` made, and the chain whose examples it is of. Make one with `Index.open`.

    stores: what is kept of each stage's examples, by its name.
    """

    def __init__(self, folder: Path, manifest: IndexManifest, chain: Chain) -> None:
        self.folder, self.manifest, self.chain = folder, manifest, chain
        self._gradients: dict[str, ExampleGradients] = {}
        self.stores: dict[str, Store] = {}

    @staticmethod
    @in_ordinary_modes
    def open(path: str | Path, chain: Chain, *, verify: bool = True) -> "Index":
        """Open an index, and compare it with the chain.

        Of each indexed stage the number of examples and of parameters, the model's values, both ends of the data set,
        and what is kept of a few examples are compared with the present model and data.

        Args:
            path: the folder.
            chain: the stages, as they were when the index was built.
            verify: read every file for its digest first; a gigabyte takes about a second.

        Raises:
            ResultsError: no index, an unfinished one, a file of it is damaged, or it is of another chain.
        """
        folder = Path(path)
        manifest = read_index_manifest(folder)
        if not manifest.is_complete:
            raise ResultsError(f"the index in {folder} is unfinished: run the command that builds it again")
        if verify:
            check_files(folder, manifest)
        index = Index(folder, manifest, chain.refreshed())
        for name, held in manifest.stages.items():
            if name not in index.chain.names:
                names = ", ".join(index.chain.names)
                raise ResultsError(f"{folder} is an index of a stage '{name}', and this chain's stages are {names}")
            check_recorded(folder, manifest, index.chain[name])
            files = read_tensors(folder / basis_name(name), manifest.index, name)
            index.stores[name] = opened_store(held.store, index.gradients(name), files)
            check_kept(folder, index.chain[name], index.stores[name])
        return index

    @property
    def stages(self) -> Mapping[str, StageIndex]:
        """What is kept of each stage, in chain order."""
        return self.manifest.stages

    def gradients(self, stage: str) -> ExampleGradients:
        """Those of the stage's examples."""
        if stage not in self._gradients:
            self._gradients[stage] = ExampleGradients(self.chain[stage].risk)
        return self._gradients[stage]

    @in_ordinary_modes
    def search(
        self,
        query: Query,
        *,
        top: int = 10,
        rescore: int | float | None = None,
        of: Iterable[str] | str | None = None,
        curvature: Curvature | str | Mapping[str, Curvature | str] | None = None,
        solver: Solver | str | Mapping[str, Solver | str] | None = None,
        memory: int = 4 * 2**30,
        progress: Progress | bool = False,
    ) -> dict[str, Hits]:
        """The most harmful and most helpful examples of each stage for a query, among those that the index names.

        The query is traced back through the chain as `trace` does. At each stage all examples are ranked by what the
        index keeps of them, those at both ends are scored exactly, and the rest is not looked at.

        Args:
            query: reduced to one number, or with `reduction="none"`, each of its examples by itself.
            top: examples kept at either end, at most.
            rescore: examples scored exactly for each query, half from either end: a number, or a share of the stage's
                as a float below 1. None takes as many as measured recall needs to reach 0.95, at most a tenth.
            of, curvature, solver, progress: as for `trace`.
            memory: bytes for the queries' vectors of parameters; more queries are solved and looked up in blocks.

        Returns:
            `Hits` by stage name, in chain order; one row for each query.

        Raises:
            DescriptionError: a setting does not fit the chain or the index.
            DataError, DifferentiationError, SolveError: as `trace`.
        """
        found = dict[str, list[Hits]]()
        for _, hits in self.walked(
            query, top=top, rescore=rescore, of=of, curvature=curvature, solver=solver, memory=memory, progress=progress
        ):
            found.setdefault(hits.stage, []).append(hits)
        return {name: joined_hits(found[name]) for name in self.manifest.stages if name in found}

    def walked(
        self,
        query: Query,
        *,
        top: int = 10,
        rescore: int | float | None = None,
        of: Iterable[str] | str | None = None,
        curvature: Curvature | str | Mapping[str, Curvature | str] | None = None,
        solver: Solver | str | Mapping[str, Solver | str] | None = None,
        memory: int = 4 * 2**30,
        progress: Progress | bool = False,
    ) -> Iterator[tuple[Solution, Hits]]:
        """What `search` finds as it is found, the last stage first: with the solution whose value, `[P, k]`, scored it.

        Arguments and errors as for `search`. Where the queries are many there is one of these for each block of them.
        """
        check_arguments(self.chain, query)
        check_options(of, None, progress)
        check_count(top, "Index.search(top=...)")
        check_count(memory, "Index.search(memory=...), in bytes,")
        stages = self._asked(of)
        numbers = {name: self._rescored(name, rescore, top) for name in stages}
        bars = progress if not isinstance(progress, bool) else Bars() if progress else Silent()
        curvatures = by_stage(self.chain, curvature, Auto(), "curvature")
        solvers = by_stage(self.chain, solver, Lanczos(), "solver", usual_solvers(self.chain, curvatures))
        checked(self.chain, query, bars)
        bounds = self.chain.bound_stages[min(map(self.chain.names.index, stages)) :]
        started = time.perf_counter()
        for some in blocks(query, bounds, memory):
            for bound, solution in adjoints(self.chain, some, stages, curvatures, solvers, bars):
                solved = time.perf_counter()
                hits = self._hits(bound, solution, numbers[bound.name], top, bars)
                yield solution, replace(hits, seconds={"solving": solved - started, **hits.seconds})
                started = time.perf_counter()

    def _asked(self, of: Iterable[str] | str | None) -> list[str]:
        names = [of] if isinstance(of, str) else list(self.stages) if of is None else list(of)
        for name in names:
            if name not in self.stages:
                refuse(f"stage {name!r} is not in the index {self.folder}; it holds {', '.join(self.stages)}")
        if not names:
            refuse("of: no stage to search; name at least one, or leave it out to search every stage")
        return names

    def _rescored(self, stage: str, asked: int | float | None, top: int) -> int:
        """How many examples are scored for each query."""
        held = self.stages[stage]
        if asked is None:
            recall = held.recall
            number = tried(held.n_examples)[-1] if recall is None else recall.enough()
        elif isinstance(asked, float):
            if not 0 < asked <= 1:
                refuse(f"rescore: a share must lie between 0 and 1, got {asked:g}; type 0.1 (10%) or a number, 1000")
            number = round(asked * held.n_examples)
        else:
            check_count(asked, "rescore")
            number = asked
        return min(held.n_examples, max(number, 2 * top))

    def _hits(self, bound: BoundStage, solution: Solution, rescored: int, top: int, bars: Progress) -> Hits:
        """Both phases, at one stage."""
        name, held = bound.name, self.stages[bound.name]
        adjoint = solution.value.to(bound.trained.device)
        started = time.perf_counter()
        candidates = lookup(self.folder, name, held, self.stores[name].scorer(adjoint), rescored)
        looked = time.perf_counter()
        gradients = self.gradients(name)
        union = sorted(set().union(*candidates))
        columns, scores = gradients.columns(adjoint), list[Tensor]()
        with bars.task(f"scoring {bound.stage.where}", len(union), "examples") as advance:
            for indices, _, products in gradients.products(union, columns):
                scores.append(-products.cpu())
                advance(len(indices))
        ranking = _ranking(name, held.n_examples, union, candidates, torch.cat(scores).mT, top)
        seconds = {"looking up": looked - started, "rescoring": time.perf_counter() - looked}
        told = replace(solution, value=solution.value.new_zeros(0, adjoint.shape[1]))
        ranking = replace(ranking, solution=told).with_ids(bound.stage.example_ids)
        return Hits(ranking, min(map(len, candidates)), held.recall, seconds)


def _ranking(
    stage: str, n_examples: int, union: list[int], candidates: list[list[int]], scores: Tensor, top: int
) -> Ranking:
    """Each query's ranking of its own candidates, so that it does not depend on what else was asked."""
    places = {index: place for place, index in enumerate(union)}
    found: list[Ranking] = []
    for row, mine in zip(scores, candidates, strict=True):
        own = torch.tensor(mine)
        values = row[torch.tensor([places[index] for index in mine])].unsqueeze(0)
        ranking = ranked(stage, [Part(0, values, len(mine))], top)
        named = {"harmful": own[ranking.harmful], "helpful": own[ranking.helpful]}
        found.append(replace(ranking, n_examples=n_examples, **named))
    return joined(found)

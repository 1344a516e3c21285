"""A run on disk, as the process that makes it has it: saved piece by piece, resumed if it was killed.

`trace(..., out=DIR)` writes into the folder as it goes; `Trace.save` writes a whole run to a folder inside, which takes
the place of what is there in one step: the moment that its record is complete.
"""

import shutil
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Self, TypeVar, final

from stagetrace.errors import ResultsError, StagetraceError
from stagetrace.parallel import world
from stagetrace.results.files import (
    RECORD,
    STAGING,
    adjoint_name,
    part_name,
    part_numbers,
    run_files,
    sha256_of,
    tokens_name,
)
from stagetrace.results.jsonable import JSON, to_json
from stagetrace.results.lock import Lock
from stagetrace.results.manifest import Manifest, merged, versions
from stagetrace.results.opening import opened, promote
from stagetrace.results.parts import Part, read_part, write_part
from stagetrace.results.reading import (
    Contents,
    files_of,
    read_run,
    shape_of,
)
from stagetrace.results.solutions import read_solution, solution_record, write_solution
from stagetrace.results.token_parts import TokenPart, read_tokens, write_tokens
from stagetrace.solvers.base import Solution

T = TypeVar("T")


@final
class RunFolder:
    """A folder in which one run lives, for the one process that writes to it. Make one with `RunFolder.open`.

    With several processes the first one alone touches the disk, and the others are told what it read. Stages are
    recorded in chain order: the reverse of the order in which they are first asked for or kept here, because a trace
    walks back from the last stage to the first.

    As a context it lets the folder go at the end, and removes a folder in which nothing has been kept if the run was
    refused, so that the same folder takes the run once what was wrong has been put right.

    Example:
        >>> import tempfile, torch
        >>> with tempfile.TemporaryDirectory() as path:
        ...     with RunFolder.open(path, {"query": "f00d"}) as run:
        ...         run.write_part("pretrain", 0, Part(0, torch.tensor([0.5, -1.0]).double(), n_examples=2))
        ...         run.finish({"seconds": 1.5})
        ...     read_run(path).scores["pretrain"].removal_effect
        tensor([-0.2500,  0.5000], dtype=torch.float64)
    """

    def __init__(self, path: Path | None, manifest: Manifest, lock: Lock | None = None, *, staged: bool) -> None:
        self._path, self._manifest, self._lock, self._staged = path, manifest, lock, staged
        self._stages: list[str] = []

    @staticmethod
    def open(path: str | Path | None, description: Mapping[str, JSON], *, replacing: bool = False) -> "RunFolder":
        """Make the folder, or resume the run in it.

        path: None keeps nothing: what is kept goes nowhere, and nothing is found.
        description: fingerprints and settings; a run is resumed only if they are equal.
        replacing: write a whole run beside what is there; it takes its place when it is finished, and not before.

        Raises:
            ResultsError: another process writes to the folder, or it holds something else, a run that cannot be read,
                or another run: the message lists what differs. Nothing has been written then.
            DescriptionError: a description that JSON cannot hold.
        """
        wanted = to_json(description, "description")
        folder = None if path is None else Path(path)
        alone = replacing or folder is None  # whoever saves a trace may be the only process to do so
        run = RunFolder(folder, Manifest.of(wanted), staged=replacing)
        with nullcontext() if alone else world().together("the run's folder"):
            if folder is not None and world().is_first:
                run = RunFolder(folder, *opened(folder, wanted, replacing=replacing), staged=replacing)
        if not alone:
            run._manifest = replace(run._manifest, status=world().share(run._manifest.status))
        return run

    @property
    def complete(self) -> bool:
        """Whether the run is finished and all its files are there: `contents` then gives it."""
        return self._manifest.is_complete

    def contents(self) -> Contents:
        """The complete run; see `read_run`."""
        return self._shared(read_run)  # pyright: ignore[reportReturnType]  # without a folder no run is complete

    def solution(self, stage: str) -> Solution | None:
        """The stage's solution if it has been written, or None.

        Raises:
            ResultsError: its file is damaged, or of another run.
        """
        self._record_stage(stage)
        name, run = adjoint_name(stage), self._manifest.run
        return self._shared(lambda at: read_solution(at / name, run, stage) if (at / name).exists() else None)

    def write_solution(self, stage: str, solution: Solution) -> None:
        """Write a stage's solution.

        Raises:
            ResultsError: the run is complete, the folder is no longer this run's, or the file system refused.
        """
        self._record_stage(stage)
        with self._written() as place:
            if place is not None:
                write_solution(place / adjoint_name(stage), self._manifest.run, stage, solution)

    def part(self, stage: str, number: int) -> Part | None:
        """Part `number` of the stage's scores if it has been written, or None.

        Raises:
            ResultsError: its file is damaged, or of another run.
        """
        self._record_stage(stage)
        name, run = part_name(stage, number), self._manifest.run
        return self._shared(lambda at: read_part(at / name, run, stage, number) if (at / name).exists() else None)

    def write_part(self, stage: str, number: int, part: Part) -> None:
        """Write part `number` of the stage's scores: the examples from `number * part_size(n_queries)` on.

        Raises:
            ResultsError: the part holds other examples, the run is complete, the folder is no longer this run's, or the
                file system refused.
            DataError: a score that is not finite.
        """
        self._record_stage(stage)
        with self._written() as place:
            if place is not None:
                write_part(place / part_name(stage, number), self._manifest.run, stage, number, part)

    def tokens(self, stage: str, number: int) -> TokenPart | None:
        """The token scores beside part `number` of the stage's scores if they have been written, or None.

        Raises:
            ResultsError: their file is damaged, or of another run.
        """
        name, run = tokens_name(stage, number), self._manifest.run
        return self._shared(lambda at: read_tokens(at / name, run, stage, number) if (at / name).exists() else None)

    def write_tokens(self, stage: str, number: int, n_examples: int, tokens: TokenPart) -> None:
        """Write the token scores beside part `number` of the stage's scores.

        Raises:
            ResultsError: the run is complete, the folder is no longer this run's, or the file system refused.
            DataError: a score that is not finite.
        """
        with self._written() as place:
            if place is not None:
                write_tokens(place / tokens_name(stage, number), self._manifest.run, stage, n_examples, tokens)

    def finish(self, statistics: Mapping[str, JSON], made_by: Mapping[str, str] | None = None) -> None:
        """Read everything back, record the digest of every file, and declare the run complete.

        statistics: timings, work counts, findings.
        made_by: the versions that made the run; None for those that are running.

        Raises:
            ResultsError: a part is missing or damaged, or the run is complete already.
            DescriptionError: statistics that JSON cannot hold.
        """
        with self._written() as place:
            if place is not None and self._path is not None:
                self._declare_complete(place, self._path, statistics, made_by)

    def _declare_complete(
        self, place: Path, path: Path, statistics: Mapping[str, JSON], made_by: Mapping[str, str] | None
    ) -> None:
        run = self._manifest.run
        stages = list(reversed(self._stages))
        numbers = {stage: part_numbers(place, stage) for stage in stages}
        shapes = {stage: shape_of(place, run, stage, found) for stage, found in numbers.items() if found}
        by_token = {stage: part_numbers(place, stage, tokens=True) for stage in shapes}
        kept = {
            stage: sum(len(read_tokens(place / tokens_name(stage, number), run, stage, number)) for number in found)
            for stage, found in by_token.items()
            if found
        }
        solved = {stage: place / adjoint_name(stage) for stage in stages if (place / adjoint_name(stage)).exists()}
        manifest = replace(
            self._manifest,
            status="complete",
            scores=shapes,
            tokens=kept,
            solutions={stage: solution_record(read_solution(path, run, stage)) for stage, path in solved.items()},
            statistics=to_json(statistics, "statistics"),
            versions=merged(self._manifest.versions, versions()) if made_by is None else dict(made_by),
        )
        manifest = replace(manifest, files={name: sha256_of(place / name) for name in files_of(manifest)})
        manifest.write(place)
        self._manifest = manifest
        if self._staged:
            promote(path)
        self.close()

    def close(self) -> None:
        """Let the folder go; what was kept stays, but for a run that was to replace another and is unfinished."""
        if self._lock is None or self._path is None:
            return
        if self._staged and not self.complete:
            shutil.rmtree(self._path / STAGING, ignore_errors=True)
        self._lock.release()
        self._lock = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        refused = kind is not None and issubclass(kind, StagetraceError) and not self._staged
        if refused and self._lock is not None and self._path is not None and not run_files(self._path):
            (self._path / RECORD).unlink(missing_ok=True)
        self.close()

    def _place(self) -> Path | None:
        """Where this process writes; None where it does not.

        Raises:
            ResultsError: the run is complete, or the folder has been deleted or taken over.
        """
        if self._path is None or not world().is_first:
            return None
        if self._lock is None:
            state = "complete and stays as it is; read it with Trace.load" if self.complete else "closed; open it again"
            raise ResultsError(f"{self._path}: the run is {state}")
        self._lock.check()
        return self._path / STAGING if self._staged else self._path

    def _shared(self, ask: Callable[[Path], T | None]) -> T | None:
        """What the first process reads, on every process."""
        if self._path is None:
            return None
        path = self._path
        return world().first(lambda: ask(path), "the run's folder")

    @contextmanager
    def _written(self) -> Generator[Path | None]:
        """Where this process writes, if it does; where the first one cannot, none goes on."""
        with nullcontext() if self._staged or self._path is None else world().together("writing"):
            yield self._place()

    def _record_stage(self, stage: str) -> None:
        if stage not in self._stages:
            self._stages.append(stage)

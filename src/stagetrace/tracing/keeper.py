"""Where a run keeps what it has done: a folder that a killed run resumes from, or nowhere.

Only the first process touches the disk; the others are told what it read.
"""

from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Self, TypeVar, final

from stagetrace.errors import StagetraceError
from stagetrace.parallel import world
from stagetrace.results import JSON, Part, RunFolder, Trace
from stagetrace.results.layout import run_files
from stagetrace.results.manifest import NAME
from stagetrace.solvers.base import Solution

T = TypeVar("T")


@final
class Keeper:
    """A run's folder as every process sees it.

    As a context it removes the folder again if the run is refused before anything has been kept, so that the same
    folder takes the run once what was wrong has been put right.
    """

    def __init__(
        self, folder: RunFolder | None, description: Mapping[str, JSON], *, kept: bool, complete: bool
    ) -> None:
        self.description, self.complete = description, complete
        self._folder, self._kept = folder, kept

    @staticmethod
    def open(out: str | Path | None, description: Mapping[str, JSON]) -> "Keeper":
        """Open or resume the folder `out`; None keeps nothing.

        Raises:
            ResultsError: the folder holds something else, or another run.
        """
        folder = RunFolder.open(out, description) if out is not None and world().is_first else None
        complete = world().share(folder is not None and folder.complete)
        return Keeper(folder, description, kept=out is not None, complete=complete)

    def read(self) -> Trace:
        """The complete run."""
        return self._told(lambda folder: RunFolder.read(folder.path))  # pyright: ignore[reportReturnType]

    def solution(self, stage: str) -> Solution | None:
        """A stage's solution, if it was kept."""
        return self._told(lambda folder: folder.solution(stage))

    def keep_solution(self, stage: str, solution: Solution) -> None:
        if self._folder is not None:
            self._folder.keep_solution(stage, solution)

    def parts(self, stage: str) -> Callable[[int], Part | None]:
        """Looks up a part of a stage's scores by its number, if it was kept."""
        return lambda number: self._told(lambda folder: folder.part(stage, number))

    def keep_parts(self, stage: str) -> Callable[[int, Part], None]:
        """Keeps a part of a stage's scores under its number."""
        folder = self._folder
        return lambda number, part: folder.keep_part(stage, number, part) if folder is not None else None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        refused = kind is not None and issubclass(kind, StagetraceError)
        if refused and self._folder is not None and not run_files(self._folder.path):
            (self._folder.path / NAME).unlink(missing_ok=True)
            with suppress(OSError):  # what else lies there is not ours
                self._folder.path.rmdir()

    def finish(self, statistics: Mapping[str, JSON]) -> None:
        if self._folder is not None:
            self._folder.finish(statistics)

    def _told(self, ask: Callable[[RunFolder], T]) -> T | None:
        """What the first process reads, on every process."""
        if not self._kept:
            return None
        return world().share(ask(self._folder) if self._folder is not None else None)

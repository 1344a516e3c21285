"""A run on disk: kept piece by piece as it goes, resumed if it was killed, read when it is complete."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import cast, final

from stagetrace.errors import ResultsError
from stagetrace.results.adjoint import read_solution, write_solution
from stagetrace.results.assemble import missing_files, read_parts, read_scores
from stagetrace.results.atomic import cannot_write, is_litter, sweep
from stagetrace.results.json_value import JSON, differences, listed, plain
from stagetrace.results.layout import adjoint_path, part_numbers, part_path
from stagetrace.results.manifest import NAME, Manifest, read_manifest, records, shapes
from stagetrace.results.parquet import read_part, write_part
from stagetrace.results.part import Part
from stagetrace.results.trace import Trace
from stagetrace.results.versions import merged, versions
from stagetrace.solvers.base import Solution


@final
class RunFolder:
    """A folder in which one run lives; one process at a time writes to it. Make one with `RunFolder.open`.

    Stages are recorded in chain order: the reverse of the order in which they are first asked for or kept here,
    because a trace walks back from the last stage to the first.

    Example:
        >>> import tempfile, torch
        >>> with tempfile.TemporaryDirectory() as path:
        ...     run = RunFolder.open(path, {"query": "f00d"})
        ...     run.keep_part("pretrain", 0, Part(0, torch.tensor([0.5, -1.0]).double(), n_examples=2))
        ...     run.finish({"seconds": 1.5})
        ...     RunFolder.read(path)["pretrain"].removal_effect
        tensor([-0.2500,  0.5000], dtype=torch.float64)
    """

    def __init__(self, path: Path, manifest: Manifest) -> None:
        self.path = path
        self._manifest = manifest
        self._walked: list[str] = []

    @staticmethod
    def open(path: str | Path, description: Mapping[str, JSON]) -> "RunFolder":
        """Make the folder, or resume the run in it.

        description: fingerprints and settings; a run is resumed only if they are equal.

        Raises:
            ResultsError: the folder holds something else, a run that cannot be read, or another run: the message
                lists what differs. Nothing has been written then.
            DescriptionError: a description that JSON cannot hold.
        """
        folder = Path(path)
        wanted = cast("Mapping[str, JSON]", plain(description, "description"))
        manifest = check_folder(folder, wanted)
        try:
            sweep(folder)
        except OSError as cause:
            raise cannot_write(folder, cause) from cause
        if manifest is None:
            manifest = Manifest(complete=False, description=wanted)
            manifest.write(folder)
        elif manifest.complete and missing_files(folder, manifest):
            manifest = replace(manifest, complete=False)
            manifest.write(folder)
        return RunFolder(folder, manifest)

    @staticmethod
    def read(path: str | Path) -> Trace:
        """Read a complete run. The matrix of an unreduced query comes back as float64 of the float32 stored.

        Raises:
            ResultsError: the run is unfinished, a file is missing or damaged, or the format is another.
        """
        folder = Path(path)
        manifest = read_manifest(folder)
        if not manifest.complete:
            raise ResultsError(f"{folder}: the run is not finished; run the same command again to continue it")
        missing = missing_files(folder, manifest)
        if missing:
            raise ResultsError(f"{folder}: {missing[0]} is missing; run the same command again to compute it anew")
        scores = {stage: read_scores(folder, stage) for stage in manifest.scores}
        solutions = {stage: read_solution(adjoint_path(folder, stage)) for stage in manifest.solutions}
        found = {"scores": shapes(list(scores.values())), "solutions": records(solutions)}
        changed = differences({"scores": manifest.scores, "solutions": manifest.solutions}, found)
        if changed:
            raise ResultsError(
                f"{folder}: the files are not those that {NAME} records:\n{listed(changed)}\n"
                f"delete the folder and run again"
            )
        return Trace(scores, solutions, manifest.description, manifest.statistics, manifest.versions)

    @property
    def complete(self) -> bool:
        """Whether the run is finished and all its files are there: `RunFolder.read` then gives the trace."""
        return self._manifest.complete

    def solution(self, stage: str) -> Solution | None:
        """The stage's solution if it has been kept, or None.

        Raises:
            ResultsError: its file is damaged.
        """
        self._walk(stage)
        path = adjoint_path(self.path, stage)
        return read_solution(path) if path.exists() else None

    def keep_solution(self, stage: str, solution: Solution) -> None:
        """Write a stage's solution.

        Raises:
            ResultsError: the run is complete, or the file system refused.
        """
        self._check_running()
        self._walk(stage)
        write_solution(adjoint_path(self.path, stage), solution)

    def parts(self, stage: str) -> dict[int, Part]:
        """The parts of the stage's scores that have been kept, by number.

        Raises:
            ResultsError: a file is damaged; the message names it.
        """
        self._walk(stage)
        return read_parts(self.path, stage)

    def part(self, stage: str, number: int) -> Part | None:
        """Part `number` of the stage's scores if it has been kept, or None.

        Raises:
            ResultsError: its file is damaged.
        """
        self._walk(stage)
        path = part_path(self.path, stage, number)
        return read_part(path, stage, number) if path.exists() else None

    def keep_part(self, stage: str, number: int, part: Part) -> None:
        """Write part `number` of the stage's scores: the examples from `number * part_size(n_queries)` on.

        Raises:
            ResultsError: the part holds other examples, the run is complete, or the file system refused.
            DataError: a score that is not finite.
        """
        self._check_running()
        self._walk(stage)
        write_part(part_path(self.path, stage, number), stage, number, part)

    def finish(self, statistics: Mapping[str, JSON]) -> None:
        """Read everything back, and declare the run complete.

        statistics: timings, work counts, findings; plain JSON.

        Raises:
            ResultsError: a part is missing or damaged, or the run is complete already.
        """
        self._check_running()
        stages = list(reversed(self._walked))
        scores = [read_scores(self.path, stage) for stage in stages if part_numbers(self.path, stage)]
        kept = {stage: self.solution(stage) for stage in stages}
        self._manifest = Manifest(
            complete=True,
            description=self._manifest.description,
            scores=shapes(scores),
            solutions=records({stage: solution for stage, solution in kept.items() if solution is not None}),
            statistics=cast("Mapping[str, JSON]", plain(statistics, "statistics")),
            versions=merged(self._manifest.versions, versions()),
        )
        self._manifest.write(self.path)

    def _walk(self, stage: str) -> None:
        if stage not in self._walked:
            self._walked.append(stage)

    def _check_running(self) -> None:
        if self.complete:
            raise ResultsError(f"{self.path}: the run is complete and stays as it is; read it with RunFolder.read")


def check_folder(folder: Path, wanted: Mapping[str, JSON]) -> Manifest | None:
    """The record of the run that is to be resumed, or None for a new or empty folder; nothing is written.

    Raises:
        ResultsError: the folder holds something else, a run that cannot be read, or another run.
    """
    try:
        str(folder).encode()
    except UnicodeEncodeError as cause:
        raise ResultsError(f"{folder} is not a name in UTF-8; choose another folder") from cause
    if folder.exists() and not folder.is_dir():
        raise ResultsError(f"{folder} is a file, not a folder; choose an empty or new folder")
    if not folder.exists() or all(is_litter(path) for path in folder.iterdir()):
        return None
    if not (folder / NAME).exists():
        raise ResultsError(f"{folder} is not a stagetrace run folder (no {NAME} in it); choose an empty or new folder")
    manifest = read_manifest(folder)
    changed = differences(manifest.description, wanted)
    if changed:
        raise ResultsError(
            f"{folder} holds another run; it differs from this one in (there -> here):\n{listed(changed)}\n"
            f"choose another folder (--out), or delete this one"
        )
    return manifest

"""A stage's scores from the parts in its folder: all there, each whole, and alike."""

from pathlib import Path

from stagetrace.errors import ResultsError
from stagetrace.results.layout import adjoint_path, part_numbers, part_path
from stagetrace.results.manifest import Manifest
from stagetrace.results.parquet import read_part
from stagetrace.results.part import Part, join, part_size
from stagetrace.results.scores import Scores


def read_parts(folder: Path, stage: str) -> dict[int, Part]:
    """The parts that are there, by number.

    Raises:
        ResultsError: a file is damaged; the message names it.
    """
    return {
        number: read_part(part_path(folder, stage, number), stage, number) for number in part_numbers(folder, stage)
    }


def read_scores(folder: Path, stage: str) -> Scores:
    """The scores that the parts make up; at least one part must be there.

    Raises:
        ResultsError: a part is missing, damaged or unlike the others; the message names it.
    """
    parts = read_parts(folder, stage)
    first = next(iter(parts.values()))
    for number, part in parts.items():
        if _kind(part) != _kind(first):
            raise ResultsError(
                f"{part_path(folder, stage, number)} holds {_kind(part)}, the first part {_kind(first)}; "
                f"delete the folder of this stage's parts and run the same command again"
            )
    for number in range(_count(first.n_examples, first.n_queries)):  # ends at the first that is missing
        if number not in parts:
            raise ResultsError(
                f"{part_path(folder, stage, number)} is missing; run the same command again to compute it"
            )
    return join(stage, list(parts.values()))


def missing_files(folder: Path, manifest: Manifest) -> list[Path]:
    """Files of a complete run that are not there, relative to its folder: of each stage's parts the first at most."""
    files = [adjoint_path(folder, stage) for stage in manifest.solutions]
    files = [path for path in files if not path.exists()]
    for stage in manifest.scores:
        there = set(part_numbers(folder, stage))
        # the first that is missing is enough to say, and the record may claim any number
        first = next((number for number in range(_count(*manifest.shape(stage))) if number not in there), None)
        files += [] if first is None else [part_path(folder, stage, first)]
    return [path.relative_to(folder) for path in files]


def _count(n_examples: int, n_queries: int | None) -> int:
    """How many parts that many examples make."""
    return -(-n_examples // part_size(n_queries))


def _kind(part: Part) -> str:
    queries = "" if part.n_queries is None else f" for {part.n_queries} queries"
    return f"scores of {part.n_examples} examples{queries} {'without' if part.via_shared is None else 'with'} parts"

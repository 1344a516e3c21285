"""A run folder as it is found: every file is there, is the one that was recorded, and belongs to this run."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from stagetrace.errors import ResultsError
from stagetrace.results.files import (
    RECORD,
    REMEDY,
    STAGING,
    adjoint_name,
    is_litter,
    is_stub,
    part_name,
    part_numbers,
    read_as,
    run_files,
    sha256_of,
    tokens_name,
)
from stagetrace.results.jsonable import JSON
from stagetrace.results.lock import writer_of
from stagetrace.results.manifest import Manifest, Shape, read_manifest, refuse_different, refuse_uncertain
from stagetrace.results.parts import Part, join, part_count, read_part, run_of_part
from stagetrace.results.scores import Scores, check_finite
from stagetrace.results.seals import digest_of
from stagetrace.results.solutions import read_solution, run_of_solution
from stagetrace.results.token_parts import join_tokens, read_tokens
from stagetrace.results.tokens import TokenScores
from stagetrace.solvers.base import Solution


class Contents(NamedTuple):
    """What a complete run holds; see `Trace`."""

    scores: Mapping[str, Scores]
    solutions: Mapping[str, Solution]
    description: Mapping[str, JSON]
    statistics: Mapping[str, JSON]
    versions: Mapping[str, str]
    tokens: Mapping[str, TokenScores] = {}


def read_run(path: str | Path) -> Contents:
    """Read a complete run. The matrix of an unreduced query comes back as the float32 stored.

    Raises:
        ResultsError: the run is unfinished, a file is missing, damaged or of another run, or the format is another.
    """
    folder = Path(path)
    manifest = read_manifest(place_of_record(folder))
    if not manifest.is_complete:
        writer = writer_of(folder)
        todo = f"{writer} is writing to it" if writer else "run the same command again to continue it"
        raise ResultsError(f"{folder}: the run is not finished; {todo}")
    _check_listed(folder, manifest)
    missing = missing_files(folder, manifest)
    if missing:
        raise ResultsError(f"{folder}: {missing[0]} is missing; run the same command again to compute it")
    check_digests(folder, manifest)

    def where(name: str) -> Path:
        return where_is(folder, name)

    run = manifest.run
    parts = {stage: part_count(shape.n_examples, shape.n_queries) for stage, shape in manifest.scores.items()}
    return Contents(
        {stage: read_scores(where, run, stage, range(count)) for stage, count in parts.items()},
        {stage: read_solution(where(adjoint_name(stage)), run, stage) for stage in manifest.solutions},
        manifest.description,
        manifest.statistics,
        manifest.versions,
        {
            stage: join_tokens(
                stage,
                manifest.scores[stage].n_examples,
                [read_tokens(where(tokens_name(stage, number)), run, stage, number) for number in range(parts[stage])],
            )
            for stage in manifest.tokens
        },
    )


def place_of_record(folder: Path) -> Path:
    """Where the run's record lies: in the folder, or in the run that is about to replace the one there."""
    return folder / STAGING if (folder / STAGING / RECORD).exists() else folder


def where_is(folder: Path, name: str) -> Path:
    """Where a file of the run lies: in the folder, or not yet moved there."""
    staged = place_of_record(folder) / name
    return staged if staged.exists() else folder / name


def missing_files(folder: Path, manifest: Manifest) -> list[str]:
    """Files of a complete run that are not there."""
    return [name for name in manifest.files if not where_is(folder, name).exists()]


def check_digests(folder: Path, manifest: Manifest) -> None:
    """Refuse a file that is not the one that was recorded; one that is missing is passed over.

    Raises:
        ResultsError: the message names the file.
    """
    for name, digest in manifest.files.items():
        path = where_is(folder, name)
        if path.exists() and sha256_of(path) != digest:
            raise ResultsError(
                f"{path} is damaged or of another run: it is not the file that {RECORD} records; if "
                f"{RECORD} was exchanged, put its own back; else delete this file and run the same command again"
            )


def read_scores(where: Callable[[str], Path], run: str, stage: str, numbers: Iterable[int]) -> Scores:
    """The scores that the parts of these numbers make up; there must be at least one.

    Raises:
        ResultsError: a part is missing, damaged or unlike the others; the message names it.
    """
    return join(stage, read_parts(where, run, stage, numbers))


def shape_of(place: Path, run: str, stage: str, numbers: Iterable[int]) -> Shape:
    """How many scores a stage's parts hold: all are read and checked, one at a time.

    Raises:
        ResultsError: a part is missing or damaged.
        DataError: a score is not finite.
    """
    shape: Shape | None = None
    for part in read_parts(place.joinpath, run, stage, numbers):
        shape = Shape(part.n_examples, part.n_queries)
        for tensor in (part.values, part.via_shared, part.via_head):
            check_finite(f"stage {stage!r}", tensor, part.start)
    assert shape is not None  # there is a part
    return shape


def read_parts(where: Callable[[str], Path], run: str, stage: str, numbers: Iterable[int]) -> Iterator[Part]:
    """The parts of these numbers, one after the other; errors as of `read_scores`."""
    there, first = dict.fromkeys(sorted(numbers)), None
    for number in there:
        path = where(part_name(stage, number))
        part = read_part(path, run, stage, number)
        if first is None:
            first = _kind(part)
            count = part_count(part.n_examples, part.n_queries)
            missing = next((wanted for wanted in range(count) if wanted not in there), None)
            if missing is not None:
                raise ResultsError(
                    f"{where(part_name(stage, missing))} is missing; run the same command again to compute it"
                )
        if _kind(part) != first:
            raise ResultsError(
                f"{path} holds {_kind(part)}, the first part {first}; "
                f"delete the folder of this stage's parts and run the same command again"
            )
        yield part


def files_of(manifest: Manifest) -> list[str]:
    """The files that a run of these scores and solutions has."""
    parts = [
        part_name(stage, number)
        for stage, shape in manifest.scores.items()
        for number in range(part_count(shape.n_examples, shape.n_queries))
    ]
    tokens = [tokens_name(stage, number) for stage in manifest.tokens for number in range(_parts_of(manifest, stage))]
    return [*parts, *tokens, *map(adjoint_name, manifest.solutions)]


def _parts_of(manifest: Manifest, stage: str) -> int:
    """How many parts a stage's scores have, and its token scores with them."""
    shape = manifest.scores.get(stage)
    return 0 if shape is None else part_count(shape.n_examples, shape.n_queries)


def _check_listed(folder: Path, manifest: Manifest) -> None:
    """Refuse a record that lists other files than its scores make, and parts that it does not list.

    Raises:
        ResultsError: says what is wrong.
    """
    counts = {stage: part_count(shape.n_examples, shape.n_queries) for stage, shape in manifest.scores.items()}
    # the record may claim any number, so it is compared before a list is made of it
    listed = sum(counts.values()) + sum(counts.get(stage, 0) for stage in manifest.tokens) + len(manifest.solutions)
    if (
        not set(manifest.tokens) <= set(counts)
        or listed != len(manifest.files)
        or set(files_of(manifest)) != set(manifest.files)
    ):
        raise ResultsError(
            f"{folder / RECORD} does not list the files of the scores that it records; delete the folder and run again"
        )
    if place_of_record(folder) != folder:  # the parts of the run that is being replaced are still there
        return
    for stage, count in counts.items():
        for number in part_numbers(folder, stage):
            if number >= count:
                raise ResultsError(f"{folder / part_name(stage, number)} is no part of this run; delete this file")
        for number in part_numbers(folder, stage, tokens=True):
            if stage not in manifest.tokens or number >= count:
                raise ResultsError(f"{folder / tokens_name(stage, number)} is no part of this run; delete this file")


def _kind(part: Part) -> str:
    queries = "" if part.n_queries is None else f" for {part.n_queries} queries"
    return f"scores of {part.n_examples} examples{queries} {'without' if part.via_shared is None else 'with'} parts"


# What is there before a run is written


def record_of(folder: Path, wanted: Mapping[str, JSON]) -> Manifest | None:
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
    place = place_of_record(folder)
    if not (place / RECORD).exists():
        _check_free(folder, digest_of(wanted))
        return None
    manifest = read_manifest(place)
    refuse_uncertain(folder, manifest.description, wanted)
    refuse_different(folder, "run", manifest.description, wanted)
    return manifest


def _check_free(folder: Path, run: str) -> None:
    """Refuse a folder without a record, unless nothing is in it but files of this very run.

    Raises:
        ResultsError: says what is there.
    """
    if not folder.exists() or all(is_litter(path) for path in folder.iterdir()):
        return
    if not is_stub(folder):
        raise ResultsError(
            f"{folder} is not a stagetrace run folder (no {RECORD} in it); choose an empty or new folder"
        )
    for name in run_files(folder):
        if _run_of(folder / name) != run:
            raise ResultsError(
                f"{folder} holds {name} of another run, whose {RECORD} was deleted; "
                "choose another folder (--out), or delete this one"
            )


def _run_of(path: Path) -> str | None:
    """The digest that a file of a run carries of the run's description; None if it says none."""
    with suppress(ResultsError), read_as(path, "a file of a run", REMEDY):
        return run_of_part(path) if path.suffix == ".parquet" else run_of_solution(path)
    return None

"""Where the files of a run lie, and how they get there: whole or not at all.

DIR/run.json                                what the run is, whether it is complete, and the digest of every file
DIR/scores/<stage>/part-00000.parquet       scores
DIR/tokens/<stage>/part-00000.parquet       scores of single tokens, where they were asked for
DIR/adjoints/<stage>.safetensors            solutions
DIR/.lock                                   who is writing
DIR/.saving/                                a run that is being saved over this one; complete once its run.json is there

A file is written beside its place, forced to disk, then renamed into it.
"""

# pyarrow has no type information.
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false

import hashlib
import os
import re
import shutil
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import quote

import pyarrow as pa
from safetensors import SafetensorError

from stagetrace.errors import ResultsError, StagetraceError, refuse

RECORD = "run.json"
LOCK = ".lock"
STAGING = ".saving"
_SCORES = "scores"
_TOKENS = "tokens"
_ADJOINTS = "adjoints"

REMEDY = "delete this file and run the same command again"
"""What to do about a file of a run that cannot be used."""

_LONGEST = 200
"""Characters of a file name: file systems take 255 bytes, and temporary files get longer names."""

_PART = re.compile(r"part-(\d{5,})\.parquet")


def stage_name(stage: str) -> str:
    """The stage's name as a file name: the same, but for characters that a file system might not take.

    Of a name too long for one the beginning stays, with a digest of the whole.

    Raises:
        DescriptionError: the name is empty.

    Example:
        >>> stage_name("pretrain"), stage_name("step 2"), stage_name("../a")
        ('pretrain', 'step 2', '%2E.%2Fa')
    """
    if not stage:
        refuse("a stage needs a name to be stored under, got an empty one")
    name = quote(stage, safe=" ", errors="surrogatepass")
    name = f"%2E{name[1:]}" if name.startswith(".") else name
    if len(name) <= _LONGEST:
        return name
    return f"{name[: _LONGEST - 17]}-{hashlib.sha256(name.encode()).hexdigest()[:16]}"


def part_name(stage: str, number: int) -> str:
    """The file of part `number` of a stage's scores, relative to the run's folder."""
    return f"{_SCORES}/{stage_name(stage)}/part-{number:05d}.parquet"


def tokens_name(stage: str, number: int) -> str:
    """The file of the token scores beside part `number` of a stage's scores, relative to the run's folder."""
    return f"{_TOKENS}/{stage_name(stage)}/part-{number:05d}.parquet"


def adjoint_name(stage: str) -> str:
    """The file of a stage's solution, relative to the run's folder."""
    return f"{_ADJOINTS}/{stage_name(stage)}.safetensors"


def part_numbers(folder: Path, stage: str, *, tokens: bool = False) -> list[int]:
    """The numbers of the parts that are there, ascending; of the scores, or of the token scores."""
    place = folder / (_TOKENS if tokens else _SCORES) / stage_name(stage)
    found = (_PART.fullmatch(path.name) for path in place.glob("part-*.parquet"))
    return sorted(int(match[1]) for match in found if match)


def run_files(folder: Path) -> list[str]:
    """Every file of scores and solutions, relative to the folder."""
    kinds = (f"{_SCORES}/*/*.parquet", f"{_TOKENS}/*/*.parquet", f"{_ADJOINTS}/*.safetensors")
    found = [path for kind in kinds for path in folder.glob(kind)]
    return sorted(path.relative_to(folder).as_posix() for path in found)


def is_stub(folder: Path) -> bool:
    """Whether nothing but files of scores and solutions, or less, lies there: what is left of a deleted run."""
    paths = [path for path in folder.rglob("*") if not path.is_dir() and not is_litter(path)]
    tops = {path.name for path in folder.iterdir() if not is_litter(path)}
    return tops <= {_SCORES, _TOKENS, _ADJOINTS} and {path.relative_to(folder).as_posix() for path in paths} <= set(
        run_files(folder)
    )


def sha256_of(path: Path) -> str:
    """The digest of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def atomic(path: Path, *, forced: bool = True) -> Generator[Path, None, None]:
    """Give a temporary path beside `path`; once the block has written it, it replaces `path` in one step.

    forced: onto the disk at once, which takes some milliseconds. Else the file outlives this process, but not the
    machine, until `force`.

    If the block raises, or the disk is full, the temporary file goes and what stood at `path` stays.

    Raises:
        ResultsError: the file system refused.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with atomic(Path(folder) / "a.txt") as temporary:
        ...         _ = temporary.write_text("whole")
        ...     sorted(path.name for path in Path(folder).iterdir())
        ['a.txt']
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        temporary.chmod(0o666 & ~_umask())  # safetensors writes files that only their owner can read
        if forced:
            force(temporary)
        move(temporary, path, forced=forced)
    except OSError as cause:
        raise cannot_write(path, cause) from cause
    except UnicodeEncodeError as cause:
        half = ascii(cause.object[cause.start : cause.end])
        raise ResultsError(
            f"cannot write {path}: {half} is half a character, which no file can hold; rename what has it"
        ) from cause
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file in UTF-8, whole or not at all.

    Raises:
        ResultsError: the file system refused, or the text cannot be written in UTF-8.
    """
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


def move(source: Path, target: Path, *, forced: bool = True) -> None:
    """Move `source` over `target` in one step, and record the move on disk."""
    target.parent.mkdir(parents=True, exist_ok=True)
    source.replace(target)
    if forced and os.name == "posix":
        force(target.parent)


@contextmanager
def filled(out: Path, first: str) -> Generator[Path, None, None]:
    """Give a new folder beside `out`; once the block has filled it, it takes the place of a new or empty `out`.

    Of an `out` that holds something the entries are replaced one by one, and what else lies there stays. `first` goes
    first: the file that says whose folder it is, so that a process that was killed on the way can be run again.

    Raises:
        ResultsError: the file system refused.
    """
    staging = out.resolve().with_name(f".{out.resolve().name}.saving")
    try:
        shutil.rmtree(staging, ignore_errors=True)  # what a killed process left
        staging.mkdir(parents=True)
        yield staging
        if out.exists() and not any(out.iterdir()) and not out.samefile(Path.cwd()):
            out.rmdir()
        if not out.exists():
            move(staging, out)
            return
        for path in sorted(staging.iterdir(), key=lambda path: path.name != first):
            target = out / path.name
            if target.is_dir() and not target.is_symlink():
                shutil.rmtree(target)
            move(path, target)
    except OSError as cause:
        raise cannot_write(out, cause) from cause
    finally:
        shutil.rmtree(staging, ignore_errors=True)


@contextmanager
def read_as(place: object, what: str, remedy: str) -> Generator[None, None, None]:
    """Whatever goes wrong while a file is read means that it is not what it should be.

    Raises:
        ResultsError: "PLACE cannot be read as WHAT (cause); REMEDY", in one line.
    """
    try:
        yield
    except (
        *(pa.ArrowException, SafetensorError, StagetraceError),
        *(ArithmeticError, AttributeError, LookupError, OSError, RuntimeError, TypeError, ValueError),
    ) as cause:
        raise ResultsError(f"{place} cannot be read as {what} ({' '.join(str(cause).split())}); {remedy}") from cause


def cannot_write(path: Path, cause: OSError) -> ResultsError:
    """The error for a file system that refused."""
    return ResultsError(
        f"cannot write {path}: {cause.strerror or cause}; make room or allow it, then run the same command again"
    )


def holds(folder: Path, record: str) -> bool:
    """Whether a folder has its record; False where it is new or empty.

    Raises:
        ResultsError: it is a file, or holds something else.
    """
    if folder.exists() and not folder.is_dir():
        raise ResultsError(f"{folder} is a file, not a folder; choose an empty or new folder")
    if (folder / record).exists():
        return True
    if folder.exists() and any(not is_litter(path) for path in folder.iterdir()):
        raise ResultsError(f"{folder} holds something else (no {record} in it); choose an empty or new folder")
    return False


def is_litter(path: Path) -> bool:
    """Whether `path` is what a killed process left: a lock, or a write that never happened."""
    return path.name in (LOCK, STAGING) or (path.name.startswith(".") and path.name.endswith(".tmp"))


def sweep(folder: Path) -> None:
    """Remove the writes that killed processes left unfinished; only while this process holds the folder's lock."""
    for path in sorted(folder.rglob(".*.tmp")):
        path.unlink(missing_ok=True)
    if not (folder / STAGING / RECORD).exists():
        shutil.rmtree(folder / STAGING, ignore_errors=True)


def _umask() -> int:
    """The permissions that this process takes away from new files."""
    mask = os.umask(0)
    os.umask(mask)
    return mask


def force(path: Path) -> None:
    """Have a file or a folder's entries on the disk when this returns."""
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

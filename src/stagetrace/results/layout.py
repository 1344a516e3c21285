"""Where the files of a run lie.

DIR/run.json                                what the run is, and whether it is complete
DIR/scores/<stage>/part-00000.parquet       scores
DIR/adjoints/<stage>.safetensors            solutions
"""

import hashlib
import re
from pathlib import Path
from urllib.parse import quote

from stagetrace.errors import refuse

SCORES = "scores"
ADJOINTS = "adjoints"

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


def part_path(folder: Path, stage: str, number: int) -> Path:
    """The file of part `number` of a stage's scores."""
    return folder / SCORES / stage_name(stage) / f"part-{number:05d}.parquet"


def adjoint_path(folder: Path, stage: str) -> Path:
    """The file of a stage's solution."""
    return folder / ADJOINTS / f"{stage_name(stage)}.safetensors"


def part_numbers(folder: Path, stage: str) -> list[int]:
    """The numbers of the parts that are there, ascending."""
    found = (_PART.fullmatch(path.name) for path in (folder / SCORES / stage_name(stage)).glob("part-*.parquet"))
    return sorted(int(match[1]) for match in found if match)


def run_files(folder: Path) -> list[Path]:
    """Every file of scores and solutions, relative to the folder."""
    found = [*(folder / SCORES).glob("*/*"), *(folder / ADJOINTS).glob("*")]
    return sorted(path.relative_to(folder) for path in found)

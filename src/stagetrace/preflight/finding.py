"""One thing that a preflight check found."""

from dataclasses import dataclass
from enum import StrEnum
from typing import final


@final
class Level(StrEnum):
    """How much it matters."""

    OK = "ok"
    NOTE = "note"
    WARNING = "WARNING"


@final
@dataclass(frozen=True)
class Finding:
    """What was looked at, where, and what was found; a warning says what to do about it."""

    where: str
    what: str
    level: Level
    text: str

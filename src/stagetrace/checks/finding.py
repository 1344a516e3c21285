"""One thing that a check found."""

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
    """What was looked at, where, and what was found; a warning says what to do about it.

    seconds: what looking took.
    """

    where: str
    what: str
    level: Level
    text: str
    seconds: float = 0.0

"""Progress of a long job: one task at a time, with a total where it is known.

The library reports to a `Progress`; the caller chooses what is shown: `Silent` shows nothing and is the default, `Bars`
writes to standard error.
"""

from stagetrace.progress.bars import Bars
from stagetrace.progress.progress import KEPT, Advance, Progress, Silent, listening, part_done

__all__ = [
    "KEPT",
    "Advance",
    "Bars",
    "Progress",
    "Silent",
    "listening",
    "part_done",
]

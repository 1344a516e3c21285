"""What a long job tells while it runs: one task at a time, with a total where it is known.

The library calls `Progress`; what is drawn is the caller's choice: `Silent` draws nothing and is the default, `Bars`
draws on standard error.
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

"""What to train on next: examples kept and dropped by their scores, what that is predicted to change, and the check."""

from typing import TYPE_CHECKING

from stagetrace.curate.curation import Curation, curate
from stagetrace.curate.groups import GroupTotal
from stagetrace.curate.matching import matched
from stagetrace.curate.rows import Rows, read_rows
from stagetrace.curate.rules import Drop, DropAbove, KeepTop, Rule
from stagetrace.curate.verify import Verified, verify
from stagetrace.renamed import removed

__all__ = [
    "Curation",
    "Drop",
    "DropAbove",
    "GroupTotal",
    "KeepTop",
    "Rows",
    "Rule",
    "Verified",
    "curate",
    "matched",
    "read_rows",
    "verify",
]

if not TYPE_CHECKING:
    __getattr__ = removed(__name__, dict.fromkeys(("HuggingFace", "Table"), "Rows(place, data), or read_rows(place)"))

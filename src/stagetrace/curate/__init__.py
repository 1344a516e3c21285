"""What to train on next: examples kept and dropped by their scores, what that is predicted to change, and the check."""

from stagetrace.curate.curation import Curation as Curation
from stagetrace.curate.curation import curate as curate
from stagetrace.curate.groups import GroupTotal as GroupTotal
from stagetrace.curate.rows import Rows as Rows
from stagetrace.curate.rows import read_rows as read_rows
from stagetrace.curate.rules import Drop as Drop
from stagetrace.curate.rules import DropAbove as DropAbove
from stagetrace.curate.rules import KeepTop as KeepTop
from stagetrace.curate.rules import Rule as Rule
from stagetrace.curate.verify import Verified as Verified
from stagetrace.curate.verify import verify as verify


def __getattr__(name: str) -> object:
    if name in ("Table", "HuggingFace"):
        raise ImportError(f"stagetrace.curate.{name} is now Rows; write Rows(place, data), or read_rows(place)")
    raise AttributeError(f"module 'stagetrace.curate' has no attribute '{name}'")

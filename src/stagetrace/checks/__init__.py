"""Everything a score rests on, checked before it is trusted: data, losses, and the derivative itself."""

from stagetrace.checks.finding import Finding, Level
from stagetrace.checks.verify import in_short, verify_query, verify_stage

__all__ = [
    "Finding",
    "Level",
    "in_short",
    "verify_query",
    "verify_stage",
]

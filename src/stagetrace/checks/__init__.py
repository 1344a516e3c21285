"""Checks of what every score depends on: data, losses, and the derivatives."""

from stagetrace.checks.finding import Finding, Level
from stagetrace.checks.verify import in_short, verify_query, verify_stage

__all__ = [
    "Finding",
    "Level",
    "in_short",
    "verify_query",
    "verify_stage",
]

"""What can be known before a long run: what would go wrong, and what it would cost."""

from stagetrace.checks.finding import Finding, Level
from stagetrace.preflight.inspect import inspect

__all__ = [
    "Finding",
    "Level",
    "inspect",
]

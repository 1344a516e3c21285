"""Everything that can be known before a long run: what would be wrong, and what it would cost."""

from stagetrace.checks.finding import Finding as Finding
from stagetrace.checks.finding import Level as Level
from stagetrace.preflight.inspect import inspect as inspect

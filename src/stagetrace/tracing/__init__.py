"""The method: from a query's loss back through the stages to their examples."""

from stagetrace.tracing.query import Query
from stagetrace.tracing.ranking import rank
from stagetrace.tracing.trace import trace

__all__ = [
    "Query",
    "rank",
    "trace",
]

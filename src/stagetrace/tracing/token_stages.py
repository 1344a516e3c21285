"""Of which stages single tokens are scored, by what the user asked for."""

import warnings
from collections.abc import Collection

from stagetrace.errors import StagetraceWarning, refuse
from stagetrace.objectives.objective import TokenLosses, name_of
from stagetrace.results.tokens import KEPT
from stagetrace.stages.bound import BoundStage
from stagetrace.stages.chain import Chain
from stagetrace.stages.shards import whole_shapes
from stagetrace.tracing.ensemble import trained_seeds
from stagetrace.tracing.query import Query

__all__ = ["MOST_QUERIES", "most_tokens", "stages_of_tokens", "token_stages"]

MOST_QUERIES = 8
"""Queries, each by itself, up to which tokens are scored: each token then has as many scores."""


def most_tokens(tokens: object) -> int:
    """How many tokens of a stage are kept, as `trace(tokens=...)` says it; 0 where none are scored.

    Raises:
        DescriptionError: it is neither True, False nor a number of at least 1.
    """
    if isinstance(tokens, bool):
        return KEPT if tokens else 0
    if not isinstance(tokens, int) or tokens < 1:
        refuse(f"trace(tokens=...) must be True, False, or how many tokens of a stage are kept, got {tokens!r}")
    return tokens


def token_stages(chain: Chain, query: Query, scored: Collection[str]) -> tuple[str, ...]:
    """The scored stages whose tokens can be scored, in chain order; warns of the others.

    Raises:
        DescriptionError: there is none, or the query has too many rows.
    """
    rows = query.rows or 1
    if rows > MOST_QUERIES:
        refuse(
            f"trace(tokens=...) scores each token for up to {MOST_QUERIES} queries, got {rows:,}; type "
            "reduction='mean', or take fewer query examples"
        )
    if trained_seeds(chain):
        refuse("trace(tokens=...) takes chains that were trained, and this one's stages are trained by the library")
    why = {name: _unfit(chain[name]) for name in chain.names if name in scored}
    unfit = {name: reason for name, reason in why.items() if reason}
    if len(unfit) == len(why):
        refuse(f"trace(tokens=...): no stage has scores of tokens: {'; '.join(unfit.values())}; leave tokens= out")
    for reason in unfit.values():
        warnings.warn(f"no scores of tokens: {reason}", StagetraceWarning, stacklevel=4)
    return tuple(name for name in why if name not in unfit)


def stages_of_tokens(chain: Chain) -> tuple[str, ...]:
    """The stages whose tokens can be scored, in chain order; none of a chain that the library trains."""
    return () if trained_seeds(chain) else tuple(bound.name for bound in chain if _unfit(bound) is None)


def _unfit(bound: BoundStage) -> str | None:
    """Why the tokens of a stage cannot be scored; None if they can."""
    where = bound.stage.where
    if whole_shapes(bound.stage.model) is not None:
        return f"the parameters of {where} lie in shards (one process with the plain module has scores of tokens)"
    if not isinstance(bound.stage.loss, TokenLosses):
        return f"the loss of {where}, {name_of(bound.stage.loss)}, is not a sum over tokens"
    return None

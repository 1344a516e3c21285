"""Two-phase search: a compressed store of every example's gradient, and queries that score few examples exactly.

build     one pass over the examples: a basis of gradients drawn by the loss, and each one's coordinates in a byte each
search    the query's adjoint times all codes names candidates, whose scores are then computed exactly
"""

from stagetrace.index.build import build
from stagetrace.index.hits import Hits
from stagetrace.index.index import Index
from stagetrace.index.manifest import StageIndex
from stagetrace.index.recall import Recall

__all__ = ["Hits", "Index", "Recall", "StageIndex", "build"]

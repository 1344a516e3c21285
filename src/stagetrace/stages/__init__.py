"""What the user describes: stages, the links between them, the chain they form."""

from stagetrace.stages.chain import Chain
from stagetrace.stages.links import Frozen, Link, Proximal
from stagetrace.stages.stage import Stage

__all__ = [
    "Chain",
    "Frozen",
    "Link",
    "Proximal",
    "Stage",
]

"""How a stage started from the one before it: `Link` is what a link is, and each way has a file of its own."""

from stagetrace.stages.links.frozen import Frozen
from stagetrace.stages.links.link import Link
from stagetrace.stages.links.proximal import Proximal

__all__ = [
    "Frozen",
    "Link",
    "Proximal",
]

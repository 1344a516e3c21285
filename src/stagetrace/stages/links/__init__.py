"""How a stage started from the one before it: the interface `Link`, and a file for each way."""

from stagetrace.stages.links.computed import Computed
from stagetrace.stages.links.frozen import Frozen
from stagetrace.stages.links.link import Link
from stagetrace.stages.links.proximal import Proximal

__all__ = [
    "Computed",
    "Frozen",
    "Link",
    "Proximal",
]

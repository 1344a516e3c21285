"""Models whose parameters lie in pieces on several processes (`fully_shard`, any one-dimensional DTensor by rows).

Each process keeps some rows of every parameter, and vectors are pieces too. A layer's weights are put together where
the layer uses them (`gather.py`), in the model as a function of its pieces; gradients come back as pieces, summed over
processes. So all processes go through the same layers in step, with batches of their own (`stages/in_step.py`).
"""

from stagetrace.stages.shards.gather import admitted, differentiating, gathering
from stagetrace.stages.shards.layout import piece_of, shapes_of, sizes_of, whole_shapes, whole_values, whole_vectors
from stagetrace.stages.shards.plain import in_pieces

__all__ = [
    "admitted",
    "differentiating",
    "gathering",
    "in_pieces",
    "piece_of",
    "shapes_of",
    "sizes_of",
    "whole_shapes",
    "whole_values",
    "whole_vectors",
]

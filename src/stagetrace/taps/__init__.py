"""Taps behind a model's layers: what they were given and the gradients in what they gave, and from these the gradient
of each example, layer by layer, without forming any by autograd.
"""

from stagetrace.taps.contraction import Contraction, gradient_rows, output_rows, uncovered
from stagetrace.taps.find import Tapped, tap
from stagetrace.taps.groups import Group
from stagetrace.taps.layout import Layout
from stagetrace.taps.record import Record, Taps

__all__ = [
    "Contraction",
    "Group",
    "Layout",
    "Record",
    "Tapped",
    "Taps",
    "gradient_rows",
    "output_rows",
    "tap",
    "uncovered",
]

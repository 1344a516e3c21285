"""Scores for other tools, and theirs for this one: their file formats, and their sign."""

from stagetrace.export.formats import FORMATS, Written, export
from stagetrace.export.kronfluence import read_kronfluence
from stagetrace.export.orient import proponents

__all__ = [
    "FORMATS",
    "Written",
    "export",
    "proponents",
    "read_kronfluence",
]

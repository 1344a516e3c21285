"""Scores for other tools, and theirs for this one: their file formats, and their sign."""

from stagetrace.export.formats import FORMATS as FORMATS
from stagetrace.export.formats import Written as Written
from stagetrace.export.formats import export as export
from stagetrace.export.kronfluence import read_kronfluence as read_kronfluence
from stagetrace.export.orient import proponents as proponents

"""What a trace gives, and the plain files in which it is kept (Parquet, safetensors, JSON)."""

from stagetrace.results.folder import RunFolder
from stagetrace.results.jsonable import JSON
from stagetrace.results.parts import PART_EXAMPLES, Part, part_size
from stagetrace.results.ranking import Ranking
from stagetrace.results.rankings import read_rankings
from stagetrace.results.scores import Scores
from stagetrace.results.sign import SIGN, UNIT
from stagetrace.results.table import Row, Table, Top
from stagetrace.results.tokens import ExampleTokens, TokenRow, TokenScores
from stagetrace.results.trace import Trace

__all__ = [
    "JSON",
    "PART_EXAMPLES",
    "SIGN",
    "UNIT",
    "ExampleTokens",
    "Part",
    "Ranking",
    "Row",
    "RunFolder",
    "Scores",
    "Table",
    "TokenRow",
    "TokenScores",
    "Top",
    "Trace",
    "part_size",
    "read_rankings",
]

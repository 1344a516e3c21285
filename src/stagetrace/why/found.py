"""From scores to the examples that are shown: both ends of each stage's ranking, those that look the same as one."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from stagetrace.hf.columns import TOKENISED
from stagetrace.index import Hits, Index
from stagetrace.report.collect import given_names
from stagetrace.report.item import Reader
from stagetrace.report.words import in_words
from stagetrace.results import Scores, Trace
from stagetrace.results.table import Row
from stagetrace.results.tokens import ExampleTokens
from stagetrace.solvers.base import Solution
from stagetrace.stages.chain import Chain
from stagetrace.why.answer import Example, Piece, StageAnswer
from stagetrace.why.asked import decoded
from stagetrace.why.question import Question

Tokens = Callable[[str, Solution, Collection[int]], Mapping[int, ExampleTokens]]
"""The tokens of a stage's examples with their scores by its solution, by the examples' indices; nothing where they have
none."""

LONGEST = 300
"""Tokens of an example that are shown with their scores."""

FAR = 100
"""Examples of an end that are looked at for some that look the same, at least."""


def by_trace(chain: Chain, found: Trace, top: int, tokens: Tokens) -> tuple[StageAnswer, ...]:
    """Of scores of all examples; tokens: scores those of the examples that are shown."""
    return tuple(_stage(chain, scores, top, found.solutions.get(name), tokens) for name, scores in found.scores.items())


def by_index(index: Index, question: Question, top: int, tokens: Tokens, **how: Any) -> tuple[StageAnswer, ...]:
    """Of the examples that an index names, scored exactly; tokens: as for `by_trace`."""
    found = [
        _hits(index.chain, hits, top, solution, tokens)
        for solution, hits in index.walked(question.query, top=max(top, FAR // 2), **how)
    ]
    return tuple(reversed(found))  # in chain order


def _stage(chain: Chain, scores: Scores, top: int, solution: Solution | None, tokens: Tokens) -> StageAnswer:
    far, n = max(top, FAR), scores.n_examples
    tables = [scores.top(far, harmful=end) for end in (False, True)]
    ends = _ends(chain, scores.stage, tables, top, solution, tokens)
    note = () if solution is None else (solved(scores.stage, solution),)
    return StageAnswer(scores.stage, n, n, *ends, note)


def _hits(chain: Chain, hits: Hits, top: int, solution: Solution, tokens: Tokens) -> StageAnswer:
    ranking, far = hits.ranking, hits.ranking.harmful.shape[1]
    tables = [hits.top(far, harmful=end) for end in (False, True)]
    ends = _ends(chain, hits.stage, tables, top, solution, tokens)
    note = (solved(hits.stage, solution), hits.says())
    return StageAnswer(hits.stage, ranking.n_examples, hits.rescored, *ends, note)


def _ends(
    chain: Chain, stage: str, tables: Sequence[Iterable[Row]], top: int, solution: Solution | None, tokens: Tokens
) -> tuple[tuple[Example, ...], tuple[Example, ...]]:
    """The examples of both ends, the helpful ones first; those whose tokens have scores with these."""
    described = chain[stage].stage
    reader = Reader.of(described.data, given_names(described.objective, described.model))
    ends = [_shown(reader, stage, rows, top, harmful=end) for end, rows in zip((False, True), tables, strict=True)]
    found = {} if solution is None else tokens(stage, solution, [each.index for end in ends for each in end])
    helpful, harmful = (tuple(_with_tokens(each, described.data, found) for each in end) for end in ends)
    return helpful, harmful


def _with_tokens(example: Example, data: Any, found: Mapping[int, ExampleTokens]) -> Example:
    own = found.get(example.index)
    return example if own is None else replace(example, pieces=pieces_of(data, own))


def pieces_of(data: Any, found: ExampleTokens) -> tuple[Piece, ...]:
    """The tokens of an example with their scores, those behind a mask as they are predicted; none without a tokenizer.

    Texts are cut after `LONGEST` tokens.
    """
    tokenizer = getattr(getattr(data, "reader", None), "tokenizer", None)
    if tokenizer is None:
        return ()
    ids: list[int] = [int(one) for one in data[found.index][TOKENISED]]
    scores = dict(zip(found.positions.tolist(), found.values.tolist(), strict=True))
    for position, token in zip(found.positions.tolist(), found.tokens.tolist(), strict=True):
        ids[position] = token
    shown = ids[:LONGEST]
    return tuple(Piece(text, scores.get(place)) for place, text in enumerate(decoded(tokenizer, [])(shown)))


def _shown(reader: Reader, stage: str, rows: Iterable[Row], top: int, *, harmful: bool) -> tuple[Example, ...]:
    """The first `top` of the rows that look different, of this sign only; the others of each look by their indices."""
    found: dict[object, Example] = {}
    alike: dict[object, list[int]] = {}
    for row in rows:
        if row.score == 0 or (row.score > 0) != harmful:
            break
        item = reader.preview(stage, row.index)
        look: object = row.index if item.look is None else item.look
        if look in found:
            alike[look].append(row.index)
        elif len(found) < top:
            text = in_words(item) + (f" ... ({item.cut:,} more characters)" if item.cut else "")
            example = Example(row.index, row.score, row.removal_effect, text, item.label, preview=item)
            found[look], alike[look] = example, []
    return tuple(replace(each, alike=tuple(alike[look])) for look, each in found.items())


def solved(stage: str, solution: Solution) -> str:
    """How a stage was solved, in a sentence."""
    return (
        f"{stage}: {solution.system}, {solution.status.value} at relative residual {solution.relative_residual:.1e} "
        f"(asked for {solution.tolerance:.1e})"
    )

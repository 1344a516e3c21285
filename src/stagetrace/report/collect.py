"""The previews of a run: the examples that a report shows, and the query with what the model makes of it."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from stagetrace.errors import StagetraceWarning, refuse
from stagetrace.objectives import Classification
from stagetrace.report import picture
from stagetrace.report.fields import describe_value, fields_of, label_column
from stagetrace.report.item import Reader
from stagetrace.report.media import has_picture
from stagetrace.report.pieces import pieces_of
from stagetrace.report.previews import Previews
from stagetrace.report.sound import within
from stagetrace.results import Scores, TokenScores, Trace
from stagetrace.stages.chain import Chain
from stagetrace.stages.risk import Risk, check_finite
from stagetrace.tracing.query import Query

EACH_SIDE = 100
"""Examples of each stage on each side, harmful and helpful, by the score over all queries."""

EACH_QUERY = 10
"""The same by the score of one query, where the scores of each query were kept."""

QUERIES = 200
"""Query examples that are kept: all, or those of the largest loss."""


def collect(trace: Trace, chain: Chain, query: Query) -> Previews:
    """Preview what a report shows of a run; one forward pass over the query, the training data is not scanned.

    Raises:
        DescriptionError: the run is of another chain or query: a stage is missing, or its number of examples differs.
        DataError: a query loss cannot be used.
    """
    _check(trace, chain, query)
    asked, *contrast = query.risks(chain.last)
    losses, predictions = _losses(asked)
    shown = shown_queries(losses)
    objective = asked.objective
    model = chain.last.stage.model
    reader = Reader.of(query.data, given_names(objective, model))
    names = reader.classes or _names_of_labels(reader)
    classes = isinstance(objective, Classification)
    pair: Sequence[str] = getattr(objective, "names", ())  # of one logit: of class 0 and of class 1
    words = {index: _describe_prediction(predictions.get(index), names, pair, classes=classes) for index in shown}
    items = [
        replace(reader.preview(None, index), loss=float(losses[index]), prediction=words[index]) for index in shown
    ]
    for name, scores in trace.scores.items():
        stage = chain[name].stage
        of_stage = Reader.of(stage.data, given_names(stage.objective, stage.model))
        tokens = trace.tokens.get(name)
        indices = {*shown_examples(scores, shown), *([] if tokens is None else _with_top_tokens(tokens))}
        previews = [of_stage.preview(name, index) for index in sorted(indices)]
        if tokens is not None:
            previews = [replace(p, pieces=pieces_of(stage.data, tokens[p.index])) for p in previews]
        items += previews
    if not picture.available() and any(_shows_a_picture(Reader.of(p.stage.data)) for p in chain):
        missing = "images are shown as tables: pillow is not installed; type: pip install 'stagetrace[report]'"
        warnings.warn(missing, StagetraceWarning, stacklevel=3)
    totals = [
        each.sum() if query.reduction == "sum" else each.mean()
        for each in (losses, *(_losses(risk)[0] for risk in contrast))
    ]
    total = totals[0] - sum(totals[1:])
    return Previews(tuple(within(items)), {"query_examples": len(losses), "query_loss": float(total)})


def shown_queries(losses: Tensor) -> list[int]:
    """The query examples that are shown, ascending: all, or those of the largest loss."""
    if len(losses) <= QUERIES:
        return list(range(len(losses)))
    return sorted(losses.sort(descending=True, stable=True).indices[:QUERIES].tolist())


def rankings(scores: Scores, queries: Sequence[int]) -> list[tuple[int | None, int]]:
    """Which rankings are shown, None for that by the whole query, and how many examples of each of their ends."""
    single = queries if scores.n_queries is not None else ()
    return [(None, EACH_SIDE), *((query, EACH_QUERY) for query in single)]


def shown_examples(scores: Scores, queries: Sequence[int]) -> list[int]:
    """The examples of a stage that are shown, ascending: the ends of each ranking."""
    chosen = set[int]()
    for query, count in rankings(scores, queries):
        for harmful in (True, False):
            chosen |= set(scores.top(count, harmful=harmful, query=query).indices)
    return sorted(chosen)


def _with_top_tokens(tokens: TokenScores) -> list[int]:
    """The examples of the tokens at both ends, which `stagetrace show` lists in words."""
    return [row.index for harmful in (True, False) for row in tokens.ends(EACH_QUERY, harmful=harmful)]


def _check(trace: Trace, chain: Chain, query: Query) -> None:
    for name, scores in trace.scores.items():
        if name not in chain.names:
            refuse(f"report: the run has scores of stage {name!r}, the chain has {', '.join(map(repr, chain.names))}")
        n = len(chain[name].stage.examples)
        if n != scores.n_examples:
            refuse(f"report: the run has {scores.n_examples} scores of stage {name!r}, its data set {n} examples")
        if scores.n_queries is not None and scores.n_queries != len(query.data):
            refuse(f"report: the run has scores of {scores.n_queries} queries, the query {len(query.data)} examples")


def _losses(risk: Risk) -> tuple[Tensor, dict[int, Any]]:
    """Each query example's loss, `[n]` in float64, and what the model predicts for it where that is one value."""
    found, predicted = list[Tensor](), dict[int, Any]()
    with torch.no_grad():
        for batch in risk.read(risk.examples.batch_indices()):
            outputs = risk.outputs(risk.trained_values, risk.inherited_values, batch)
            losses = risk.reduce(outputs, batch).double().cpu()
            check_finite(losses, batch.indices, risk.where)
            found.append(losses)
            if isinstance(outputs, Tensor) and outputs.ndim == 2 and len(outputs) == len(batch):
                predicted.update(zip(batch.indices, outputs.double().cpu(), strict=True))
    return torch.cat(found), predicted


def _describe_prediction(outputs: Tensor | None, names: Sequence[str], named: Sequence[str], *, classes: bool) -> str:
    """Of a classifier the likeliest class and its probability; else the outputs."""
    if outputs is None:
        return ""
    if len(outputs) == 1 and len(named) == 2:
        second = float(outputs.sigmoid()[0])
        return f"{named[second > 0.5]} ({max(second, 1 - second):.0%})"
    if not classes or len(outputs) == 1:
        return describe_value(outputs)
    place = int(outputs.argmax())
    name = names[place] if place < len(names) else str(place)
    return f"{name} ({float(outputs.softmax(0)[place]):.0%})"


def given_names(objective: Any, model: Any) -> Sequence[str]:
    """Class names that the objective was given, or the model's configuration; none where these are numbers only."""
    named: Sequence[str] = getattr(objective, "names", ())
    if named:
        return tuple(map(str, named))
    given = getattr(getattr(model, "config", None), "id2label", None)
    if isinstance(given, Mapping) and given and not all(str(name).startswith("LABEL_") for name in given.values()):
        return [str(given.get(place, place)) for place in range(len(given))]
    return ()


def _names_of_labels(reader: Reader) -> Sequence[str]:
    """Names that the query's labels have.

    A column's names are taken only if the items still have that column: a transform may count labels from elsewhere.
    """
    return reader.names.get(label_column(fields_of(reader.data[0])) or "", ())


def _shows_a_picture(reader: Reader) -> bool:
    return has_picture(fields_of(reader.data[0]))

"""What the first rows of a data set show and the user should know, found without reading all of it."""

from typing import Any

from stagetrace.hf.columns import TOKENISED, Columns
from stagetrace.hf.packages import base_of
from stagetrace.hf.rows import some_values
from stagetrace.hf.task import Task


def said_of(rows: Any, columns: Columns, task: Task, tokenizer: Any, longest: int | None, where: str) -> list[str]:
    """Rows in which nothing is predicted, and texts that are cut: a sentence each, where there are any."""
    if columns.tokenised:
        return _too_short(rows, columns, task, where)
    found: list[str] = []
    for column in columns.texts[:1] if task is not Task.TOKENS else ():
        texts = [text for text in some_values(rows, column) if isinstance(text, str)]
        empty = sum(not text.strip() for text in texts)
        if empty and task.of_tokens:
            found.append(
                f"{where}: {empty:,} of the first {len(texts):,} rows have an empty '{column}', in which nothing is "
                "predicted: their loss and score are 0"
            )
        cut = _cut(texts, tokenizer, longest)
        if cut:
            found.append(f"{where}: texts are cut after {longest:,} tokens; example {cut[0]} has {cut[1]:,}")
    return found


def said_of_one_logit(rows: Any, label: str | None, model: Any, task: Task, where: str) -> list[str]:
    """Squared errors of a yes or no: what transformers takes for one logit, and hardly what was meant."""
    config = base_of(model).config
    if task is not Task.REGRESSION or getattr(config, "problem_type", None) is not None or config.num_labels != 1:
        return []
    values = [value for value in some_values(rows, label or "labels") if value is not None]
    if not values or not all(isinstance(value, int) and value in (0, 1) for value in values):
        return []
    return [
        f"{where}: the model has one logit and the labels are 0 and 1; the loss is the squared error, as transformers "
        "takes it without a config.problem_type; for cross-entropy give objective=BinaryClassification()"
    ]


def _too_short(rows: Any, columns: Columns, task: Task, where: str) -> list[str]:
    if task is not Task.CAUSAL or columns.label is not None:
        return []
    lengths = [len(tokens) for tokens in some_values(rows, TOKENISED) if tokens is not None]
    short = sum(length < 2 for length in lengths)
    if not short:
        return []
    return [
        f"{where}: {short:,} of the first {len(lengths):,} rows have no next token to predict: their loss and score "
        "are 0"
    ]


def _cut(texts: list[str], tokenizer: Any, longest: int | None) -> tuple[int, int] | None:
    """The index of the text with most characters and its number of tokens, where they are too many."""
    if not texts or longest is None:
        return None
    index = max(range(len(texts)), key=lambda i: len(texts[i]))
    if len(texts[index]) < longest:  # a token has at least one character, about
        return None
    size = len(tokenizer(texts[index], verbose=False)[TOKENISED])
    return (index, size) if size > longest else None

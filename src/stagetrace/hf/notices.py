"""What the first rows of a data set show and the user should know, found without reading all of it."""

from typing import Any

from stagetrace.hf.columns import TOKENISED, Columns
from stagetrace.hf.packages import base_of
from stagetrace.hf.rows import is_sequence, some_values
from stagetrace.hf.task import Task


def row_notices(rows: Any, columns: Columns, task: Task, tokenizer: Any, longest: int | None, where: str) -> list[str]:
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
    return [*found, *cut_notices(rows, columns, task, tokenizer, longest, where)]


def cut_notices(rows: Any, columns: Columns, task: Task, tokenizer: Any, longest: int | None, where: str) -> list[str]:
    """That texts are cut, with the longest: of one text, a pair, a prompt with its completion, or words."""
    if longest is None or columns.tokenised:
        return []
    found = list(zip(*(some_values(rows, column) for column in columns.texts), strict=False))
    sizes = [sum(map(_characters, texts)) for texts in found]
    if not sizes or max(sizes) < longest - 4:  # a token has at least one character, special ones none
        return []
    index = sizes.index(max(sizes))
    texts: Any = ("".join(found[index]),) if columns.completes else found[index]
    words = task is Task.TOKENS
    try:
        size = len(tokenizer(*texts, is_split_into_words=words, verbose=False)[TOKENISED])
    except Exception:  # no texts: refused when the example is read
        return []
    return [f"{where}: texts are cut after {longest:,} tokens; example {index} has {size:,}"] if size > longest else []


TARGETS = 100
"""Target texts of which the tokens are looked at."""


def target_notices(rows: Any, column: str, tokenizer: Any, longest: int | None, where: str) -> list[str]:
    """That target texts are cut, with the longest, and that they have tokens that the tokenizer does not know."""
    texts = [text for text in some_values(rows, column) if isinstance(text, str)]
    if not texts or tokenizer is None:
        return []
    try:
        index = max(range(len(texts)), key=lambda place: len(texts[place]))
        size = len(tokenizer(text_target=texts[index], verbose=False)[TOKENISED])
        tokens = [list(tokenizer(text_target=text, verbose=False)[TOKENISED]) for text in texts[:TARGETS]]
    except Exception:  # refused when the example is read
        return []
    found: list[str] = []
    if longest is not None and size > longest:
        found.append(f"{where}: target texts are cut after {longest:,} tokens; example {index} has {size:,}")
    own = getattr(tokenizer, "unk_token_id", None)
    unknown = [each.count(own) for each in tokens]
    if own is not None and any(unknown):
        first = next(place for place, count in enumerate(unknown) if count)
        found.append(
            f"{where}: {100 * sum(unknown) / sum(map(len, tokens)):.2g} % of the tokens of the first {len(tokens):,} "
            f"target texts are unknown to the tokenizer, first in example {first}: are letters of another case?"
        )
    return found


def _characters(text: Any) -> int:
    return len(text) if isinstance(text, str) else sum(map(_characters, text)) if isinstance(text, list) else 0


def one_logit_notices(rows: Any, label: str | None, model: Any, task: Task, where: str) -> list[str]:
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
    lengths = [len(tokens) for tokens in some_values(rows, TOKENISED) if is_sequence(tokens)]
    short = sum(length < 2 for length in lengths)
    if not short:
        return []
    return [
        f"{where}: {short:,} of the first {len(lengths):,} rows have no next token to predict: their loss and score "
        "are 0"
    ]

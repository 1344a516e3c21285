"""`query`: examples that are read as a stage reads its own."""

import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Literal, cast

from stagetrace.errors import StagetraceError, StagetraceWarning, refuse
from stagetrace.hf.asking import Prompt, asked_row, task_of_stage, tokenizer_of, without_conversations
from stagetrace.hf.collate import collation_of
from stagetrace.hf.columns import EMBEDDED, MASK, TOKENISED, UNLABELLED, columns_of
from stagetrace.hf.labels import Labels, check_names
from stagetrace.hf.masking import Masking
from stagetrace.hf.modal import collated_by
from stagetrace.hf.notices import cut_notices
from stagetrace.hf.of_pairs import asks_for_texts, reader_of_texts
from stagetrace.hf.packages import base_of
from stagetrace.hf.packed import check_apart, check_cache, is_packed, packs
from stagetrace.hf.pairs import PairReader
from stagetrace.hf.reader import Given, Reader
from stagetrace.hf.rows import first_row, is_sequence, present
from stagetrace.hf.sentences import Sentences
from stagetrace.hf.signature import main_of, takes
from stagetrace.hf.task import Task
from stagetrace.hf.tokenizing import check_tokenizer, longest_of, size_of
from stagetrace.hf.tokens import check_per_token
from stagetrace.hf.weights import mean_of_own_tokens
from stagetrace.objectives import NextToken
from stagetrace.objectives.objective import Objective, PlainLoss
from stagetrace.stages.stage import Stage
from stagetrace.tracing.query import CONTRAST, WHERE, Query

Collate = Callable[[list[Any]], Any]


def query(
    data: Any = None,
    *,
    prompt: Prompt | None = None,
    completion: str | None = None,
    stage: Stage,
    objective: Objective | PlainLoss | None = None,
    reduction: Literal["mean", "sum", "none"] = "mean",
    contrast: Any = None,
    batch_size: int = 32,
    workers: int = 0,
) -> Query:
    """A query whose examples are read as a stage of `hf.stage` reads its own: tokenizer, columns, labels, masks.

    Columns that the stage's rows do not have are inferred from the query's: labels of tokens (-100 where nothing is
    asked), a `completion_mask`, or a 'prompt' and a 'completion', of which the completion is asked for. Of
    conversations ('messages', or a prompt and a completion that are messages) the last turn is asked for, which is the
    assistant's, by the tokenizer's chat template. Labels that a query's row has itself are always the ones that count.
    Of a stage that learned from pairs (`DPOTrainer`), rows that are no pairs are asked for the mean loss of their next
    tokens.

    Args:
        data: examples with the columns of the stage's data; for a language model also a string or a list of strings.
        prompt, completion: in the place of data, what a causal language model was asked and what it said. A prompt is a
            string, or a list of messages before the assistant's turn.
        stage: the last stage of the chain.
        objective: the query loss; None takes the stage's, of tokens the mean over each query example's own.
        reduction, batch_size, workers: as for `Query`.
        contrast: further examples, read as `data` are, whose loss is taken off that of `data`, as for `Query`: another
            completion of the same prompt, or texts of another behaviour. With `reduction="none"` they pair up by row.
            With prompt= a string is another completion of it.

    Raises:
        DescriptionError: the stage is not of `hf.stage`, or the data are of the wrong kind.
        DataError: the data set is empty, a prompt and its completion do not fit into the model, a conversation cannot
            be read, or (when it is read) an example predicts nothing.
    """
    if not isinstance(stage, Stage) or not isinstance(stage.data, Sentences):
        refuse(f"{WHERE}: stage= must be a stage made by hf.stage or hf.from_trainer; for others write Query(...)")
    if (data is None) == (prompt is None):
        refuse(f"{WHERE}: give rows of data, or prompt= and completion=: one of the two")
    if prompt is None and completion is not None:
        refuse(f"{WHERE}: completion= goes with prompt=, what it was said to; rows of data have a column 'completion'")
    if prompt is None:
        rows = _rows(data, stage)
    else:
        rows = [asked_row(prompt, completion, stage, f"{WHERE}: prompt= and completion=")]
        if isinstance(contrast, str):
            contrast = [asked_row(prompt, contrast, stage, f"{CONTRAST} after prompt=")]
    read, collate = _read(rows, stage)
    if objective is None and asks_for_texts(read, stage):
        objective = NextToken()
    if objective is None and task_of_stage(stage).of_tokens:
        objective = mean_of_own_tokens(stage.objective)
    return Query(
        read,
        objective=objective,
        reduction=reduction,
        contrast=None if contrast is None else _contrast(contrast, stage, collate),
        batch_size=batch_size,
        collate=collate,
        workers=workers,
    )


def _contrast(data: Any, stage: Stage, collate: Collate | None) -> Sentences:
    """The contrast's rows, read as the stage's are; messages name it."""
    if isinstance(data, Query):
        refuse(f"{CONTRAST} is a query; give its rows as they are: contrast=rows")
    try:
        read, collated = _read(_rows(data, stage), stage)
    except StagetraceError as cause:
        raise type(cause)(str(cause).replace(f"{WHERE}:", f"{CONTRAST}:", 1)) from cause
    if (collated is None) != (collate is None) or type(collated) is not type(collate):
        refuse(f"{CONTRAST}: its rows have other columns than the query's; give both the same columns")
    return Sentences(read.rows, replace(read.reader, where=CONTRAST), read.notices)


def _rows(data: Any, stage: Stage) -> Any:
    """Rows as they are, conversations as tokens; strings as rows of the stage's column of texts."""
    texts: list[Any] = [data] if isinstance(data, str) else data
    if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
        return without_conversations(data, stage)
    task, reader = task_of_stage(stage), cast(Sentences, stage.data).reader
    if task not in UNLABELLED:
        refuse(
            f"{WHERE}: data is text without labels, and {stage.where} needs them; write "
            "hf.query([{'text': ..., 'label': ...}], stage=...) with the columns of the stage's data"
        )
    own = reader.columns.texts if isinstance(reader, Reader) else ()
    column = own[0] if len(own) == 1 else "text"
    return [{column: text} for text in texts]


def _read(rows: Any, stage: Stage) -> tuple[Sentences, Collate | None]:
    """The query's rows, read as the stage's are, and their collation."""
    row, own = first_row(rows, WHERE), stage.data
    reader = own.reader
    if isinstance(reader, PairReader) and reader.relevant(row) == reader.expected:
        return own.of(rows, WHERE), stage.collate
    if isinstance(reader, PairReader):
        reader = reader_of_texts(reader, stage)
        collate = collation_of(stage.model, reader.tokenizer, reader.task, WHERE)
    elif isinstance(reader, Given):
        # labels that collators may overwrite
        labelled = task_of_stage(stage) is Task.CAUSAL and is_sequence(row.get("labels"))
        if not labelled and reader.relevant(row) == reader.expected:
            return own.of(rows, WHERE), stage.collate
        reader, collate = _reader_of(stage), collated_by(stage.model, tokenizer_of(stage), task_of_stage(stage), WHERE)
    else:
        collate = stage.collate
    return Sentences(rows, _with_query_columns(reader, row, rows, stage)), collate


def _with_query_columns(reader: Reader, row: Mapping[str, Any], rows: Any, stage: Stage) -> Reader:
    """The stage's reader for the columns that the query's rows have."""
    old, task = reader.columns, reader.task
    reader, row = _with_media(reader, row)
    tokenised = any(name in present(row) for name in (old.main, TOKENISED, EMBEDDED))
    texts = old.texts if set(old.texts) <= set(row) and not (tokenised and task in UNLABELLED) else ()
    label = old.label if old.label in row and bool(texts) == bool(old.texts) else None
    columns, said = columns_of(row, task, texts or None, label, WHERE, main=old.main, takes=reader.takes)
    if columns.tokenised and old.tokenised and reader.expected is not None:
        lost = sorted((reader.expected & reader.takes) - set(present(row)) - {MASK, "labels"})
        if lost:
            refuse(
                f"{WHERE}: the rows lack {', '.join(map(repr, lost))}, which the rows of {stage.where} have; the "
                f"columns are {', '.join(map(repr, row))}"
            )
    needed = not columns.tokenised or (task is Task.MASKED and columns.label is None)
    if needed and reader.tokenizer is None:
        refuse(
            f"{WHERE}: the rows of {stage.where} are tokenised, and it has no tokenizer for these; give it one by "
            "hf.stage(..., tokenizer=), or tokenise the query's rows, too"
        )
    if needed:
        check_tokenizer(reader.tokenizer, task, columns, WHERE)
    if columns.tokenised and task.of_tokens:
        check_per_token(row, f"{WHERE}: example 0")
    packed = columns.tokenised and is_packed(row, task, WHERE)
    if packed and not reader.packed:
        check_cache(stage.model, WHERE)
    if packed and packs(row, rows):
        check_apart(stage.evaluated, WHERE)
    if columns != old:
        for notice in said:
            warnings.warn(notice, StagetraceWarning, stacklevel=4)
    for notice in cut_notices(rows, columns, task, reader.tokenizer, reader.max_length, WHERE):
        warnings.warn(notice, StagetraceWarning, stacklevel=4)
    check_names(getattr(rows, "features", None), columns.label, reader.labels, WHERE)
    return replace(reader, columns=columns, packed=packed, where=WHERE, asks=True)


def _with_media(reader: Reader, row: Mapping[str, Any]) -> tuple[Reader, Mapping[str, Any]]:
    """The stage's reader of images or sounds for the query's column of them, and the first row with their features."""
    if reader.media is None or reader.columns.main in present(row):
        return replace(reader, media=None), row
    media = reader.media.of(row, WHERE)
    return replace(reader, media=media), media(row, 0, WHERE)


def _reader_of(stage: Stage) -> Reader:
    """A reader for a stage whose rows were collated by a collator of its Trainer."""
    config, task, tokenizer = base_of(stage.model).config, task_of_stage(stage), tokenizer_of(stage)
    main, longest = main_of(stage.model), longest_of(tokenizer, stage.model)
    row = stage.data.rows[0]
    columns, _ = columns_of(row, task, None, None, stage.where, main=main, takes=takes(stage.model))
    labels = Labels.of(task, config)
    made = Reader(
        task, columns, labels, tokenizer, takes(stage.model), longest, Masking(), stage.where, size=size_of(config)
    )
    return replace(made, expected=made.relevant(row))

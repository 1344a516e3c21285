"""How the examples of a data set become features of a model, by what the user named and what the first row shows."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

from stagetrace.errors import refuse
from stagetrace.hf.columns import TOKENISED, Columns, columns_of
from stagetrace.hf.labels import Labels, check_names
from stagetrace.hf.load import Loaded, load_tokenizer
from stagetrace.hf.masking import Masking
from stagetrace.hf.modal import Illustrated, Sounds, begins_with, decoder_of, media_of, tokenizer_beside
from stagetrace.hf.notices import one_logit_notices, row_notices, target_notices
from stagetrace.hf.packages import base_of
from stagetrace.hf.packed import is_packed, packs, without_cache
from stagetrace.hf.reader import Reader
from stagetrace.hf.rows import first_row
from stagetrace.hf.signature import main_of, reads_images, takes, text_config_of
from stagetrace.hf.task import Task, task_of_labels
from stagetrace.hf.tokenizing import check_length, check_tokenizer, longest_of, padding_side_notices, size_of
from stagetrace.hf.tokens import check_per_token
from stagetrace.objectives.objective import Objective, PlainLoss


@final
@dataclass(frozen=True, eq=False)
class Wishes:
    """What a user says of how rows are read; None where it is found.

    max_length: tokens after which a text is cut, or samples after which a sound is.
    weighs: the column that weights are read from. ids: the column of the examples' ids.
    """

    tokenizer: Any
    processor: Any
    masking: Masking
    text: str | Sequence[str] | None
    label: str | None
    max_length: int | None
    weighs: str | None
    ids: str


def read_as(
    data: Any, loaded: Loaded, task: Task, objective: Objective | PlainLoss | None, wishes: Wishes, where: str
) -> tuple[Reader, tuple[str, ...], Any]:
    """The reader of a data set, what is said of it, and the model as it is used.

    Raises:
        DescriptionError: what the rows have and the user named does not fit the model.
        DataError: the data set is empty, or its first example cannot be read.
    """
    model, row, taken, main = loaded.model, first_row(data, where), takes(loaded.model), main_of(loaded.model)
    if wishes.text is not None and main != TOKENISED:
        refuse(
            f"{where}: text= names texts that are read, and the model reads '{main}'; leave it out (a column of images "
            "or sounds is found by its name or kind), and name a text that is written from them by label="
        )
    longest = None if task.writes else wishes.max_length  # where it is not the most tokens of a target
    media, of_media = media_of(data, model, main, wishes.processor, loaded.tokenizers, longest, where, wishes.text)
    row = row if media is None else media(row, 0, where)
    text = None if isinstance(media, Illustrated) else wishes.text
    columns, said = columns_of(
        row, task, text, wishes.label, where, main=main, takes=taken, weighs=wishes.weighs, ids=wishes.ids
    )
    if columns.label is not None:
        task = task_of_labels(task, model, objective, row[columns.label])
    if columns.tokenised and task.of_tokens:
        check_per_token(row, f"{where}: example 0")
    labels = Labels.of(task, base_of(model).config)
    check_names(getattr(data, "features", None), columns.label, labels, where)
    written = columns.tokenised and task.writes and isinstance(row[columns.label or ""], str)
    tokenizer = (
        media.processor.tokenizer
        if isinstance(media, Illustrated)
        else _tokenizer(loaded, task, columns, wishes, where, written=written)
    )
    of_text = decoder_of(model) if (written and main != TOKENISED) or reads_images(model) else model
    if written or not columns.tokenised:
        check_length(wishes.max_length, tokenizer, of_text, columns, where)
    elif wishes.max_length is not None and not isinstance(media, (Sounds, Illustrated)):
        refuse(f"{where}: max_length= cuts texts, but these examples are tokenised already; cut them beforehand")
    packed = columns.tokenised and is_packed(row, task, where)
    reader = Reader(
        task,
        columns,
        labels,
        tokenizer,
        taken,
        wishes.max_length or longest_of(tokenizer, of_text),
        wishes.masking,
        where,
        packed=packed,
        size=size_of(text_config_of(model)),
        media=media,
        begins=begins_with(model, main),
    )
    notices = [*loaded.notices, *of_media, *said, *_of_prediction(columns, where, packed=packed and packs(row, data))]
    return reader, (*notices, *_of_rows(data, reader, model, objective)), without_cache(model) if packed else model


def _tokenizer(loaded: Loaded, task: Task, columns: Columns, wishes: Wishes, where: str, *, written: bool) -> Any:
    """The tokenizer as given, that of the processor, or that beside the model; None where nothing is tokenised.

    written: whether targets are texts.
    """
    needed = not columns.tokenised or written or (task is Task.MASKED and columns.label is None)
    beside, places = tokenizer_beside(wishes.processor, loaded.tokenizers)
    given = beside if wishes.tokenizer is None else wishes.tokenizer
    if not needed and given is None:
        return None
    tokenizer = load_tokenizer(given, places, where)
    if needed:
        check_tokenizer(tokenizer, task, columns, where)
    return tokenizer


def _of_rows(data: Any, reader: Reader, model: Any, objective: object) -> list[str]:
    """What the first rows show."""
    columns, task, where = reader.columns, reader.task, reader.where
    notices = row_notices(data, columns, task, reader.tokenizer, reader.max_length, where)
    if task.writes and columns.label is not None:
        notices += target_notices(data, columns.label, reader.tokenizer, reader.max_length, where)
    if objective is None:
        notices += one_logit_notices(data, columns.label, model, task, where)
    if task is Task.CAUSAL and reader.tokenizer is not None:
        notices += padding_side_notices(base_of(model), reader.tokenizer, where)
    return notices


def _of_prediction(columns: Columns, where: str, *, packed: bool) -> list[str]:
    """Which tokens of a causal model are predicted, where it is not simply all of them."""
    if columns.completes:
        return [f"{where}: the tokens of 'completion' are predicted, those of 'prompt' not; no end of text is added"]
    if columns.predicted:
        return [f"{where}: tokens at which {' or '.join(map(repr, columns.predicted))} is 0 are not predicted"]
    if packed and columns.label is None:
        return [
            f"{where}: the first token of each packed document is not predicted; a column 'labels' would say otherwise"
        ]
    return []

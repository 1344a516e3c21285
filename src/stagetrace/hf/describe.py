"""`stage`: what a user writes."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Literal

from torch import Tensor

from stagetrace.errors import refuse
from stagetrace.hf.arguments import check_arguments, check_per_token_loss
from stagetrace.hf.collate import collation_of
from stagetrace.hf.columns import Columns, columns_of
from stagetrace.hf.counting import column_of, per_token, weights_of
from stagetrace.hf.fits import check_fits
from stagetrace.hf.labels import Labels, check_names
from stagetrace.hf.linking import link_to
from stagetrace.hf.load import Loaded, load, load_tokenizer
from stagetrace.hf.masking import Masking
from stagetrace.hf.notices import one_logit_notices, row_notices
from stagetrace.hf.ownloss import check_own_loss
from stagetrace.hf.packages import base_of
from stagetrace.hf.packed import check_apart, is_packed, packs, without_cache
from stagetrace.hf.prompts import check_prompt
from stagetrace.hf.reader import Reader
from stagetrace.hf.rows import first_row
from stagetrace.hf.sentences import Sentences
from stagetrace.hf.signature import main_of, takes
from stagetrace.hf.task import ChosenReduction, Task, objective_of, task_of, task_of_labels
from stagetrace.hf.tokenizing import (
    check_length,
    check_looks_back_only,
    check_tokenizer,
    longest_of,
    padding_side_notices,
    size_of,
)
from stagetrace.hf.tokens import check_per_token
from stagetrace.objectives.objective import Objective, PlainLoss
from stagetrace.objectives.weights import Weights
from stagetrace.recording import Unrolled
from stagetrace.recording.recorded import Recorded
from stagetrace.stages.decay import Decay
from stagetrace.stages.links.link import Link
from stagetrace.stages.own_ids import COLUMN, AskedIds
from stagetrace.stages.precision import Precision
from stagetrace.stages.stage import Stage

Collate = Callable[[list[Any]], Any]


def stage(
    name: str,
    model: Any,
    data: Any,
    *,
    tokenizer: Any = None,
    after: Stage | None = None,
    link: Link | None = None,
    alpha: float | Literal["auto"] = 0.01,
    objective: Objective | PlainLoss | None = None,
    collate: Collate | None = None,
    masking: Masking | None = None,
    reduction: ChosenReduction = "auto",
    text: str | Sequence[str] | None = None,
    label: str | None = None,
    max_length: int | None = None,
    weights: str | Weights | Sequence[float] | Tensor | None = None,
    batch_size: int = 32,
    weight_decay: Decay = 0.0,
    workers: int = 0,
    training: Any = None,
    precision: Precision | None = None,
    ids: AskedIds = None,
) -> Stage:
    """A stage from a Hugging Face model and data set, with the loss of the model's class.

    The loss by the end of the class's name: `ForSequenceClassification` cross-entropy (by `config.problem_type` and
    `num_labels` squared error or binary cross-entropy per label), `ForTokenClassification` cross-entropy of the
    labelled tokens, `ForMaskedLM` that of the masked tokens, `ForCausalLM` and `LMHeadModel` that of each next token,
    `ForConditionalGeneration` that of each token of the target, `ForQuestionAnswering` the mean of those of the
    answer's first and last token, `ForMultipleChoice` that of the right choice.

    Args:
        name: how results refer to the stage.
        model: a folder written by `save_pretrained` (of a model or of adapters; safetensors only), a hub name, a
            `PreTrainedModel` or a `PeftModel`, as the stage left it. A model given is never changed.
        data: a `datasets.Dataset`, a list of dicts or another map-style data set of dicts: with texts, tokenised when
            they are read, or with `input_ids`.
        tokenizer: a tokenizer or the folder of one; None takes the one beside the model.
        after: the stage this one started from; the shared parameters are found by name (`hf.shared`). Where all still
            have their values the link is `Frozen`, otherwise `Proximal(alpha)`, with unchanged tensors kept.
        link: the link, where `after` would not find the right one.
        alpha: the pull of a `Proximal` link that `after` finds; or "auto".
        objective: another loss; needed for other classes.
        collate: another collation of the features `input_ids`, `attention_mask`, ..., `labels`.
        masking: for masked language models; None is `Masking(0.15, seed=0)`.
        reduction: what a sentence's loss is. "tokens": the sum over its tokens divided by the data's mean number of
            tokens, so that every token weighs the same: what the trainers of transformers and TRL minimise. "mean" and
            "sum" are over its own tokens; with "mean" every sentence weighs the same. "auto" is "tokens"; for a
            recorded training (`link=Unrolled(...)`) "sum", since what a step divided it by is in the recording.
        weights: how much each example counts in the mean: the name of a column, one number per example, or
            `stagetrace.objectives.Weights`, also with the column that names a source or class, such as
            `Weights({"web": 0.5, "code": 2.0}, sources="source")`. None counts each once.
        text, label: the columns; two text columns are a pair. None takes the usual names.
        max_length: tokens after which a text is cut; None is the most that tokenizer and model allow.
        batch_size, weight_decay, workers, training, precision: as for `Stage`; for training see `hf.checkpoints`.
        ids: the examples' stable ids, as for `Stage`: the name of a column of `data`, or a sequence; None takes the
            column 'id' where every value of it is a text or a whole number and is used once.

    Raises:
        DescriptionError: something does not fit together; the message says what to type instead.
        DataError: the data set is empty.
    """
    where = f"stage '{name}'"
    check_arguments(name, masking, reduction, text, label, max_length, collate, where)
    loaded = load(model, where)
    task = task_of(loaded.model, objective, where)
    if objective is None and task.of_tokens:
        check_prompt(loaded.model, where)
    weighs, called = column_of(weights), ids if isinstance(ids, str) else COLUMN
    reader, notices, used = _read(
        data, loaded, task, objective, tokenizer, masking or Masking(), text, label, max_length, called, where, weighs
    )
    if objective is None:
        check_per_token_loss(reduction, reader.task, where)
    trained, found = (used, link) if after is None else link_to(used, after, link, alpha, where)
    summed = reduction == "sum" or (reduction == "auto" and _recorded(found))
    described = Stage(
        name,
        model=trained,
        objective=objective_of(reader.task, "sum" if summed else "mean") if objective is None else objective,
        data=Sentences(data, reader, notices),
        link=found,
        weights=weights_of(weights, data, where),
        weight_decay=weight_decay,
        batch_size=batch_size,
        collate=collate or collation_of(loaded.model, reader.tokenizer, task, where),
        workers=workers,
        training=training,
        precision=precision,
        ids=ids,
    )
    if task is Task.CAUSAL and objective is None:
        check_looks_back_only(base_of(described.evaluated), where)
    check_fits(described, task)
    if reader.packed and packs(first_row(data, where), data):
        check_apart(described.evaluated, where)
    if objective is not None:
        return described
    check_own_loss(described, reader.task, objective_of(reader.task, "mean"))
    if not reader.task.of_tokens or summed or reduction == "mean":
        return described
    whose = "the trainers of transformers and TRL"
    loss, said = per_token(described, reader.task, partial(objective_of, reader.task), whose)
    return replace(described, objective=loss, data=Sentences(data, reader, notices, said))


def _recorded(link: Link | None) -> bool:
    """Whether the stage's steps were recorded, and not yet to be made with the stage's own loss."""
    return isinstance(link, Unrolled) and isinstance(link.recording, Recorded)


def _read(
    data: Any,
    loaded: Loaded,
    task: Task,
    objective: Objective | PlainLoss | None,
    tokenizer: Any,
    masking: Masking,
    text: str | Sequence[str] | None,
    label: str | None,
    max_length: int | None,
    ids: str,
    where: str,
    weighs: str | None,
) -> tuple[Reader, tuple[str, ...], Any]:
    """How the data set's examples become the model's features, what is said of it, and the model as it is used."""
    model, row, taken = loaded.model, first_row(data, where), takes(loaded.model)
    main = main_of(model)
    columns, said = columns_of(row, task, text, label, where, main=main, takes=taken, weighs=weighs, ids=ids)
    if columns.label is not None:
        task = task_of_labels(task, model, objective, row[columns.label])
    if columns.tokenised and task.of_tokens:
        check_per_token(row, f"{where}: example 0")
    needed = not columns.tokenised or (task is Task.MASKED and columns.label is None)
    if needed or tokenizer is not None:
        tokenizer = load_tokenizer(tokenizer, loaded.tokenizers, where)
    if needed:
        check_tokenizer(tokenizer, task, columns, where)
    config = base_of(model).config
    labels = Labels.of(task, config)
    check_names(getattr(data, "features", None), columns.label, labels, where)
    if columns.tokenised and max_length is not None:
        refuse(f"{where}: max_length= cuts texts, but these examples are tokenised already; cut them beforehand")
    check_length(max_length, tokenizer, model, columns, where)
    length, packed = max_length or longest_of(tokenizer, model), columns.tokenised and is_packed(row, task, where)
    reader = Reader(
        task, columns, labels, tokenizer, taken, length, masking, where, packed=packed, size=size_of(config)
    )
    notices = [*loaded.notices, *said, *_prediction_notices(columns, where, packed=packed and packs(row, data))]
    notices += row_notices(data, columns, task, tokenizer, length, where)
    if objective is None:
        notices += one_logit_notices(data, columns.label, model, task, where)
    if task is Task.CAUSAL and tokenizer is not None:
        notices += padding_side_notices(base_of(model), tokenizer, where)
    return reader, tuple(notices), without_cache(model) if packed else model


def _prediction_notices(columns: Columns, where: str, *, packed: bool) -> list[str]:
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

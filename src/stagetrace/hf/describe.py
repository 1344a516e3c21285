"""`stage` and `query`: what a user writes."""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch

from stagetrace.errors import refuse
from stagetrace.hf.collate import Collation
from stagetrace.hf.columns import columns_of
from stagetrace.hf.labels import Labels, check_names
from stagetrace.hf.linking import link_to
from stagetrace.hf.load import Loaded, load, load_tokenizer
from stagetrace.hf.masking import Masking
from stagetrace.hf.ownloss import check_own_loss
from stagetrace.hf.packages import base_of
from stagetrace.hf.prompts import check_prompt
from stagetrace.hf.sentences import Reader, Sentences, first_row
from stagetrace.hf.signature import takes
from stagetrace.hf.task import Reduction, Task, objective_of, task_of
from stagetrace.objectives.objective import Objective, PlainLoss
from stagetrace.stages.links import Link
from stagetrace.stages.stage import Stage
from stagetrace.tracing.query import WHERE, Query

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
    reduction: Reduction = "mean",
    text: str | Sequence[str] | None = None,
    label: str | None = None,
    max_length: int | None = None,
    batch_size: int = 32,
    weight_decay: float = 0.0,
    workers: int = 0,
) -> Stage:
    """A stage from a Hugging Face model and data set, with the loss of the model's class.

    The loss by the end of the class's name: `ForSequenceClassification` cross-entropy (by `config.problem_type` and
    `num_labels` squared error or binary cross-entropy per label), `ForTokenClassification` cross-entropy of the
    labelled tokens, `ForMaskedLM` that of the masked tokens, `ForCausalLM` and `LMHeadModel` that of each next token.

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
        reduction: a sentence's loss is the "mean" or the "sum" over its tokens.
        text, label: the columns; two text columns are a pair. None takes the usual names.
        max_length: tokens after which a text is cut; None is the most that tokenizer and model allow.
        batch_size, weight_decay, workers: as for `Stage`.

    Raises:
        DescriptionError: something does not fit together; the message says what to type instead.
        DataError: the data set is empty.
    """
    where = f"stage '{name}'"
    loaded = load(model, where)
    task = task_of(loaded.model, objective, where)
    if objective is None and task.of_tokens:
        check_prompt(loaded.model, where)
    reader = _reader(data, loaded, task, tokenizer, masking or Masking(), text, label, max_length, where)
    trained, found = (loaded.model, link) if after is None else link_to(loaded.model, after, link, alpha, where)
    described = Stage(
        name,
        model=trained,
        objective=objective_of(task, reduction) if objective is None else objective,
        data=Sentences(data, reader, loaded.notices),
        link=found,
        weight_decay=weight_decay,
        batch_size=batch_size,
        collate=collate or collation_of(loaded.model, reader.tokenizer, task, where),
        workers=workers,
    )
    if task is Task.CAUSAL and objective is None:
        _check_looks_back_only(described)
    if objective is None:
        check_own_loss(described, task, objective_of(task, "mean"))
    return described


def query(
    data: Any,
    *,
    stage: Stage,
    objective: Objective | PlainLoss | None = None,
    reduction: Literal["mean", "sum", "none"] = "mean",
    batch_size: int = 32,
    workers: int = 0,
) -> Query:
    """A query whose examples are read as a stage of `hf.stage` reads its own: tokenizer, columns, labels, masks.

    Args:
        data: examples with the columns of the stage's data.
        stage: the last stage of the chain.
        objective, reduction, batch_size, workers: as for `Query`.

    Raises:
        DescriptionError: the stage is not of `hf.stage`, or the data are of the wrong kind.
        DataError: the data set is empty.
    """
    if not isinstance(stage, Stage) or not isinstance(stage.data, Sentences):
        refuse(f"{WHERE}: stage= must be a stage made by hf.stage or hf.from_trainer; for others write Query(...)")
    return Query(
        stage.data.of(data, WHERE),
        objective=objective,
        reduction=reduction,
        batch_size=batch_size,
        collate=stage.collate,
        workers=workers,
    )


def _reader(
    data: Any,
    loaded: Loaded,
    task: Task,
    tokenizer: Any,
    masking: Masking,
    text: str | Sequence[str] | None,
    label: str | None,
    max_length: int | None,
    where: str,
) -> Reader:
    """How the data set's examples become the model's features."""
    columns = columns_of(list(first_row(data, where)), task, text, label, where)
    needed = not columns.tokenised or (task is Task.MASKED and columns.label is None)
    if needed or tokenizer is not None:
        tokenizer = load_tokenizer(tokenizer, loaded.tokenizers, where)
    config = base_of(loaded.model).config
    labels = Labels.of(task, config)
    check_names(getattr(data, "features", None), columns.label, labels, where)
    if needed:
        _check_tokenizer(tokenizer, task, columns.tokenised, where)
    if columns.tokenised and max_length is not None:
        refuse(f"{where}: max_length= cuts texts, but these examples are tokenised already; cut them beforehand")
    length = None if columns.tokenised else max_length or _longest(tokenizer, config)
    return Reader(task, columns, labels, tokenizer, takes(loaded.model), length, masking, where)


def collation_of(model: Any, tokenizer: Any, task: Task, where: str) -> Collation:
    """Padding with the model's padding token, else the tokenizer's, else token 0 behind the attention mask.

    Raises:
        DescriptionError: a classifier that finds the end of a sentence by its padding, without a padding token.
    """
    base = base_of(model)
    pad = _token(base.config)
    if pad is None and not task.of_tokens and hasattr(base, "score"):
        refuse(
            f"{where}: {type(base).__name__} reads its answer off the last token before the padding, but its "
            "config.pad_token_id is not set; type: model.config.pad_token_id = tokenizer.pad_token_id (and save the "
            "model again if it comes from a folder)"
        )
    pad = _token(tokenizer) if pad is None else pad
    return Collation(pad or 0, getattr(tokenizer, "pad_token_type_id", None) or 0)


def _token(owner: Any) -> int | None:
    """The padding token of a configuration or a tokenizer, if it has one."""
    pad = getattr(owner, "pad_token_id", None)
    return pad if isinstance(pad, int) and pad >= 0 else None


def _check_tokenizer(tokenizer: Any, task: Task, tokenised: bool, where: str) -> None:
    if task is Task.MASKED and getattr(tokenizer, "mask_token_id", None) is None:
        refuse(f"{where}: masked language modelling needs a tokenizer with a mask token; this one has none")
    if task is Task.TOKENS and not tokenised and not getattr(tokenizer, "is_fast", False):
        refuse(
            f"{where}: labels of words go to tokens by word_ids(), which fast tokenizers alone have; load the "
            "tokenizer by AutoTokenizer, or tokenise yourself into input_ids and labels"
        )


def _longest(tokenizer: Any, config: Any) -> int | None:
    """The most tokens that the tokenizer allows, or the model where the tokenizer says nothing (a number of 1e30)."""
    length = getattr(tokenizer, "model_max_length", None)
    if isinstance(length, int) and length < 10**9:
        return length
    return getattr(config, "max_position_embeddings", None)


def _check_looks_back_only(stage: Stage) -> None:
    """Refuse a model whose answer for the next token depends on that token: that was not its training loss."""
    base = base_of(stage.evaluated)
    device = next(base.parameters()).device
    size = min(base.config.vocab_size, 4)
    with torch.no_grad():
        one, other = (
            base(input_ids=torch.tensor([[0, 1, last]], device=device)).logits[0, :2] for last in (2 % size, size - 1)
        )
    if float((one - other).abs().max()) > 16 * torch.finfo(one.dtype).eps * float(one.abs().max()):
        refuse(
            f"{stage.where}: {type(base).__name__} sees the tokens it is to predict, so the loss of a causal language "
            "model is not what it was trained on; set config.is_decoder = True if it was, else give objective="
        )

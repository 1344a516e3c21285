"""`stage`: what a user writes."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Literal

from torch import Tensor

from stagetrace.hf.arguments import check_arguments, check_per_token_loss
from stagetrace.hf.counting import column_of, per_token, weights_of
from stagetrace.hf.fits import check_fits
from stagetrace.hf.linking import link_to
from stagetrace.hf.load import load
from stagetrace.hf.masking import Masking
from stagetrace.hf.modal import Sounds, check_padding, collated_by
from stagetrace.hf.ownloss import check_own_loss
from stagetrace.hf.packages import base_of
from stagetrace.hf.packed import check_apart, packs
from stagetrace.hf.prompts import check_prompt
from stagetrace.hf.reading import Wishes, read_as
from stagetrace.hf.rows import first_row
from stagetrace.hf.sentences import Sentences
from stagetrace.hf.task import ChosenReduction, Task, objective_of, task_of
from stagetrace.hf.tokenizing import check_looks_back_only
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
    processor: Any = None,
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

    The loss by the end of the class's name: `ForSequenceClassification`, `ForImageClassification` and
    `ForAudioClassification` cross-entropy (by `config.problem_type` and `num_labels` squared error or binary
    cross-entropy per label), `ForTokenClassification` cross-entropy of the labelled tokens, `ForMaskedLM` that of the
    masked tokens, `ForCausalLM` and `LMHeadModel` that of each next token, `ForConditionalGeneration` and
    `EncoderDecoderModel` that of each token of the target (without an encoder, of text and images: each next token),
    `ForQuestionAnswering` the mean of those of the answer's first and last token, `ForMultipleChoice` that of the right
    choice, `ForCTC` minus the log-probability of the spoken text.

    Args:
        name: how results refer to the stage.
        model: a folder written by `save_pretrained` (of a model or of adapters; safetensors only), a hub name, a
            `PreTrainedModel` or a `PeftModel`, as the stage left it. A model given is never changed.
        data: a `datasets.Dataset`, a list of dicts or another map-style data set of dicts: with texts, images or
            sounds, of which features are made when they are read, or with the features (`input_ids`, `pixel_values`).
        tokenizer: a tokenizer or the folder of one; None takes the one beside the model.
        processor: what makes features of images or sounds: a processor, image processor or feature extractor of
            transformers, or the folder of one; None takes the one beside the model. Images with text need a whole one.
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
        max_length: tokens after which a text is cut; None is the most that tokenizer and model allow. Of a classifier
            of sounds: samples after which they are cut, and to which they are filled where the model is not told what
            is padding; None is their own length.
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
    wishes = Wishes(tokenizer, processor, masking or Masking(), text, label, max_length, weighs, called)
    reader, notices, used = read_as(data, loaded, task, objective, wishes, where)
    if objective is None:
        check_per_token_loss(reduction, reader.task, where)
    trained, found = (used, link) if after is None else link_to(used, after, link, alpha, where)
    summed = reduction == "sum" or (reduction == "auto" and _recorded(found))
    ready = partial(objective_of, reader.task, model=loaded.model)
    described = Stage(
        name,
        model=trained,
        objective=ready("sum" if summed else "mean") if objective is None else objective,
        data=Sentences(data, reader, notices),
        link=found,
        weights=weights_of(weights, data, where),
        weight_decay=weight_decay,
        batch_size=batch_size,
        collate=collate or collated_by(loaded.model, reader.tokenizer, task, where),
        workers=workers,
        training=training,
        precision=precision,
        ids=ids,
    )
    if task is Task.CAUSAL and objective is None:
        check_looks_back_only(base_of(described.evaluated), where)
    check_fits(described, task)
    if isinstance(reader.media, Sounds):
        check_padding(described, reader.media, reader.task)
    if reader.packed and packs(first_row(data, where), data):
        check_apart(described.evaluated, where)
    if objective is not None:
        return described
    check_own_loss(described, reader.task, ready("mean"))
    if not reader.task.of_tokens or summed or reduction == "mean":
        return described
    whose = "the trainers of transformers and TRL"
    loss, said = per_token(described, reader.task, ready, whose)
    return replace(described, objective=loss, data=Sentences(data, reader, notices, said))


def _recorded(link: Link | None) -> bool:
    """Whether the stage's steps were recorded, and not yet to be made with the stage's own loss."""
    return isinstance(link, Unrolled) and isinstance(link.recording, Recorded)

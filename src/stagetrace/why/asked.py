"""From a prompt to a `Question`: by the task of the chain's last stage, and with the model's own answer where none is
given."""

from collections.abc import Callable, Sequence
from typing import Any, Literal, cast

from torch import Tensor

from stagetrace.errors import DataError, refuse
from stagetrace.hf import query
from stagetrace.hf.answers import continued, logits
from stagetrace.hf.asking import (
    Prompt,
    asked_row,
    asked_tokenizer,
    check_room,
    most_tokens,
    task_of_stage,
    without_bos,
)
from stagetrace.hf.columns import TOKENISED
from stagetrace.hf.conversations import begun, is_chat
from stagetrace.hf.packages import base_of
from stagetrace.hf.reader import Reader
from stagetrace.hf.sentences import Sentences
from stagetrace.hf.task import Task
from stagetrace.objectives import Classification, MaskedToken, NextToken
from stagetrace.objectives.tokens import IGNORED
from stagetrace.stages.chain import Chain
from stagetrace.stages.stage import Stage
from stagetrace.tracing.query import Query
from stagetrace.why.question import Question, tokens_of

WHERE = "why"

Said = Literal["by the model", "given"]


def question_of(chain: Chain, prompt: Prompt, completion: str | None, label: Any, most: int) -> Question:
    """The question about the last stage's model.

    Raises:
        DescriptionError: the stage is not of `hf.stage`, or of a task without such an answer, or arguments do not fit.
        DataError: prompt and answer do not fit into the model, or there is nothing to ask about.
    """
    stage = chain.last.stage
    if not isinstance(stage.data, Sentences):
        refuse(
            f"{WHERE}: the last stage must be one of hf.stage or hf.from_trainer, whose tokenizer reads the prompt; "
            f"{stage.where} is not, so write Query(...) and trace(...)"
        )
    task = task_of_stage(stage)
    if label is not None and task is not Task.CLASSIFICATION:
        refuse(f"{WHERE}: label= asks a classifier, and {stage.where} is one of {task.value}; give completion=")
    if completion is not None and task is Task.CLASSIFICATION:
        refuse(f"{WHERE}: {stage.where} is a classifier, whose answer is a label; give label= in place of completion=")
    if is_chat(prompt) and task is not Task.CAUSAL:
        refuse(f"{WHERE}: a conversation asks a causal language model, and {stage.where} is one of {task.value}")
    if not is_chat(prompt) and not isinstance(prompt, str):
        refuse(f"{WHERE}: prompt must be a string or a list of messages, got {type(prompt).__name__}")
    match task:
        case Task.CAUSAL:
            return _completion(chain, prompt, completion, most)
        case Task.MASKED:
            return _masks(chain, cast(str, prompt), completion)
        case Task.CLASSIFICATION:
            return _label(chain, cast(str, prompt), label)
        case _:
            refuse(
                f"{WHERE}: asks causal and masked language models and classifiers of one label, and {stage.where} is one "
                f"of {task.value}; write trace(chain, hf.query([{{...}}], stage=...))"
            )


def _completion(chain: Chain, prompt: Prompt, completion: str | None, most: int) -> Question:
    stage = chain.last.stage
    tokenizer = asked_tokenizer(stage, WHERE)
    said: Said = "given"
    if completion is not None:
        row = asked_row(prompt, completion, stage)
    else:
        said, before = "by the model", _begun(tokenizer, prompt)
        written = continued(stage, before, most, WHERE)
        row = {TOKENISED: before + written, "labels": [IGNORED] * len(before) + written}
    asked = query([row], stage=stage, objective=NextToken("sum"))
    found, features = _outputs(chain, asked), asked.data[0]
    tokens, labels = list(features[TOKENISED]), list(features["labels"])
    places = [place for place, one in enumerate(labels) if one != IGNORED and place]
    shown = tokens_of(found[0, [p - 1 for p in places]], [labels[p] for p in places], _decoded(tokenizer))
    text = prompt if isinstance(prompt, str) else tokenizer.decode(tokens[: places[0]])
    return Question("completion", text, tokenizer.decode([tokens[p] for p in places]), said, shown, asked)


def _begun(tokenizer: Any, prompt: Prompt) -> list[int]:
    """The tokens after which the model writes: without those that the tokenizer adds at a text's end."""
    if not isinstance(prompt, str):
        return begun(tokenizer, prompt, WHERE)
    tokens = list(tokenizer(without_bos(tokenizer, prompt), verbose=False)[TOKENISED])
    added = set(tokenizer.all_special_ids) - {getattr(tokenizer, "bos_token_id", None)}
    special = list(tokenizer(prompt, add_special_tokens=False, verbose=False)[TOKENISED])
    while len(tokens) > len(special) and tokens[-1] in added:
        tokens.pop()
    return tokens


def _masks(chain: Chain, prompt: str, completion: str | None) -> Question:
    stage = chain.last.stage
    tokenizer = asked_tokenizer(stage, WHERE)
    mask = tokenizer.mask_token_id
    tokens = list(tokenizer(prompt, verbose=False)[TOKENISED])
    check_room(len(tokens), stage, WHERE)
    places = [place for place, one in enumerate(tokens) if one == mask]
    if not places:
        refuse(
            f"{WHERE}: {stage.where} fills in masks, and the prompt has none; write {tokenizer.mask_token} where the "
            "word stands that is asked about"
        )
    said: Said = "given"
    if completion is None:
        said, filled = "by the model", logits(stage, tokens)[0, places].argmax(dim=-1).tolist()
    else:
        filled = list(tokenizer(completion, add_special_tokens=False, verbose=False)[TOKENISED])
    if len(filled) != len(places):
        raise DataError(
            f"{WHERE}: the completion {completion!r} is {len(filled)} tokens and the prompt has {len(places)} masks; "
            f"write one {tokenizer.mask_token} for each token"
        )
    at = dict(zip(places, filled, strict=True))
    labels = [at.get(place, IGNORED) for place in range(len(tokens))]
    asked = query([{TOKENISED: tokens, "labels": labels}], stage=stage, objective=MaskedToken("sum"))
    shown = tokens_of(_outputs(chain, asked)[0, places], filled, _decoded(tokenizer))
    return Question("masks", prompt, tokenizer.decode(filled), said, shown, asked)


def _label(chain: Chain, prompt: str, label: Any) -> Question:
    stage = chain.last.stage
    if not prompt.strip():
        raise DataError(f"{WHERE}: the prompt is empty, so nothing is asked")
    said: Said = "given"
    if label is None:
        said = "by the model"
        first = query([_labelled(stage, prompt, 0)], stage=stage, objective=Classification())
        label = int(_outputs(chain, first)[0].argmax())
    names = dict(getattr(base_of(stage.model).config, "id2label", None) or {})
    if isinstance(label, str) and label not in names.values() and label.lstrip("-").isdigit():
        label = int(label)
    asked = query([_labelled(stage, prompt, label)], stage=stage, objective=Classification())
    number, found = int(asked.data[0]["labels"]), _outputs(chain, asked)
    shown = tokens_of(found, [number], lambda numbers: [str(names.get(one, one)) for one in numbers])
    return Question("label", prompt, shown[0].text, said, shown, asked)


def _labelled(stage: Stage, prompt: str, label: Any) -> dict[str, Any]:
    """A row with a text and a label, as the stage's own rows are."""
    reader = cast(Sentences, stage.data).reader
    if isinstance(reader, Reader) and len(reader.columns.texts) > 1:
        refuse(
            f"{WHERE}: {stage.where} reads pairs of texts ({', '.join(reader.columns.texts)}), and one prompt is one "
            "text; write trace(chain, hf.query([{...}], stage=...))"
        )
    tokenizer = asked_tokenizer(stage, WHERE)
    check_room(len(tokenizer(prompt, verbose=False)[TOKENISED]), stage, WHERE)
    if isinstance(reader, Reader) and reader.columns.texts:
        return {reader.columns.texts[0]: prompt, reader.columns.label or "label": label}
    most = most_tokens(stage)
    cut: dict[str, Any] = {"truncation": True, "max_length": most} if most else {}
    return {**tokenizer(prompt, **cut), "labels": label}


def _outputs(chain: Chain, asked: Query) -> Tensor:
    """What the objective has of the one example: `[1, length, vocabulary]` or `[1, classes]`."""
    risk = asked.risk(chain.last)
    (batch,) = risk.read([[0]])
    return risk.outputs(risk.trained_values, risk.inherited_values, batch).detach()


def _decoded(tokenizer: Any) -> Callable[[Sequence[int]], list[str]]:
    """From tokens to their texts, each with the blank before it."""

    def texts(tokens: Sequence[int]) -> list[str]:
        found, before = list[str](), ""
        for place in range(len(tokens)):
            whole = str(tokenizer.decode(list(tokens[: place + 1])))
            own = whole.removeprefix(before) if whole.startswith(before) else str(tokenizer.decode([tokens[place]]))
            found.append(own)
            before = whole
        return found

    return texts

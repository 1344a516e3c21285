"""From a prompt to a `Question`: by the task of the chain's last stage, its model's own answer where none is given."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast, final

from torch import Tensor

from stagetrace.errors import DataError, refuse
from stagetrace.hf import query
from stagetrace.hf.answers import continued, logits
from stagetrace.hf.asking import (
    Prompt,
    asked_row,
    asked_tokenizer,
    check_prompt_kind,
    check_room,
    most_tokens,
    task_of_stage,
    tokens_before,
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
from stagetrace.why.question import Contrast, Kind, Question, Token, tokens_of

WHERE = "why"


@final
@dataclass(frozen=True)
class Asked:
    """What is asked, as typed. answer: a completion, words at masks, or a label; None is the model's own."""

    prompt: Prompt
    answer: Any
    contrast: Any
    most: int


def question_of(chain: Chain, prompt: Prompt, completion: str | None, label: Any, contrast: Any, most: int) -> Question:
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
    check_prompt_kind(prompt, WHERE)
    asked = Asked(prompt, label if task is Task.CLASSIFICATION else completion, contrast, most)
    match task:
        case Task.CAUSAL:
            return _completion(chain, asked)
        case Task.MASKED:
            return _masks(chain, asked)
        case Task.CLASSIFICATION:
            return _label(chain, asked)
        case _:
            refuse(
                f"{WHERE}: asks causal and masked language models and classifiers of one label, and {stage.where} is "
                f"one of {task.value}; write trace(chain, hf.query([{{...}}], stage=...))"
            )


def _completion(chain: Chain, asked: Asked) -> Question:
    stage = chain.last.stage
    tokenizer, prompt, own = asked_tokenizer(stage, WHERE), asked.prompt, asked.answer is None
    if own:
        before = _begun(tokenizer, prompt)
        written, ended = continued(stage, before, asked.most, WHERE)
        row = {TOKENISED: before + written, "labels": [IGNORED] * len(before) + written}
    else:
        row, ended = asked_row(prompt, asked.answer, stage, f"{WHERE}: prompt and completion"), True
    rows = [row]
    if asked.contrast is not None:
        rows.append(asked_row(prompt, asked.contrast, stage, f"{WHERE}: prompt and contrast"))
    traced = query(rows[:1], contrast=rows[1:] or None, stage=stage, objective=NextToken("sum"))
    sides = list[tuple[str, tuple[Token, ...]]]()
    text = ""
    for data, found in _outputs(chain, traced):
        tokens, labels = list(data[TOKENISED]), list(data["labels"])
        places = [place for place, one in enumerate(labels) if one != IGNORED and place]
        names = decoded(tokenizer, tokens[: places[0]])
        shown = tokens_of(found[0, [place - 1 for place in places]], [labels[place] for place in places], names)
        sides.append(("".join(token.text for token in shown), shown))
        text = text or str(tokenizer.decode(tokens[: places[0]]))
    return _question("completion", prompt if isinstance(prompt, str) else text, sides, traced, own=own, cut=not ended)


def _begun(tokenizer: Any, prompt: Prompt) -> list[int]:
    """The tokens after which the model writes."""
    if not isinstance(prompt, str):
        return begun(tokenizer, prompt, WHERE)
    return tokens_before(tokenizer, without_bos(tokenizer, prompt))


def _masks(chain: Chain, asked: Asked) -> Question:
    stage, prompt, own = chain.last.stage, cast(str, asked.prompt), asked.answer is None
    tokenizer = asked_tokenizer(stage, WHERE)
    tokens = list(tokenizer(prompt, verbose=False)[TOKENISED])
    check_room(len(tokens), stage, WHERE)
    places = [place for place, one in enumerate(tokens) if one == tokenizer.mask_token_id]
    if not places:
        refuse(
            f"{WHERE}: {stage.where} fills in masks, and the prompt has none; write {tokenizer.mask_token} where the "
            "word stands that is asked about"
        )
    answers = [logits(stage, tokens)[0, places].argmax(dim=-1).tolist() if own else _filling(tokenizer, asked.answer)]
    answers += [] if asked.contrast is None else [_filling(tokenizer, asked.contrast)]
    for filled in answers:
        if len(filled) != len(places):
            raise DataError(
                f"{WHERE}: {tokenizer.decode(filled)!r} is {len(filled)} tokens and the prompt has {len(places)} "
                f"mask{'s' if len(places) > 1 else ''}; write one {tokenizer.mask_token} for each token"
            )
    rows = [
        {TOKENISED: tokens, "labels": [at.get(place, IGNORED) for place in range(len(tokens))]}
        for at in (dict(zip(places, filled, strict=True)) for filled in answers)
    ]
    traced = query(rows[:1], contrast=rows[1:] or None, stage=stage, objective=MaskedToken("sum"))
    sides = [
        (str(tokenizer.decode(filled)), tokens_of(found[0, places], filled, decoded(tokenizer, [])))
        for filled, (_, found) in zip(answers, _outputs(chain, traced), strict=True)
    ]
    return _question("masks", prompt, sides, traced, own=own)


def _filling(tokenizer: Any, words: Any) -> list[int]:
    if not isinstance(words, str):
        refuse(f"{WHERE}: completion and contrast must be strings, got {type(words).__name__}")
    return list(tokenizer(words, add_special_tokens=False, verbose=False)[TOKENISED])


def _label(chain: Chain, asked: Asked) -> Question:
    stage, prompt, own = chain.last.stage, cast(str, asked.prompt), asked.answer is None
    if not prompt.strip():
        raise DataError(f"{WHERE}: the prompt is empty, so nothing is asked")
    names = dict(getattr(base_of(stage.model).config, "id2label", None) or {})

    def traced(*labels: Any) -> Query:
        rows = [_labelled(stage, prompt, _numbered(label, names)) for label in labels]
        return query(rows[:1], contrast=rows[1:] or None, stage=stage, objective=Classification())

    said = asked.answer
    if own:
        ((_, found),) = _outputs(chain, traced(0))
        said = int(found[0].argmax())
    found = traced(*(label for label in (said, asked.contrast) if label is not None))
    sides = list[tuple[str, tuple[Token, ...]]]()
    for data, outputs in _outputs(chain, found):
        shown = tokens_of(outputs, [int(data["labels"])], lambda some: [str(names.get(one, one)) for one in some])
        sides.append((shown[0].text, shown))
    return _question("label", prompt, sides, found, own=own)


def _numbered(label: Any, names: Mapping[Any, Any]) -> Any:
    """A label as typed: a name stays one, a number that is no name becomes one."""
    return int(label) if isinstance(label, str) and label not in names.values() and label.isdigit() else label


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


def _question(
    kind: Kind,
    prompt: str,
    sides: Sequence[tuple[str, tuple[Token, ...]]],
    traced: Query,
    *,
    own: bool,
    cut: bool = False,
) -> Question:
    (answer, tokens), *contrast = sides
    said: Literal["by the model", "given"] = "by the model" if own else "given"
    other = Contrast(*contrast[0]) if contrast else None
    return Question(kind, prompt, answer, said, tokens, traced, other, cut)


def _outputs(chain: Chain, asked: Query) -> list[tuple[Mapping[str, Any], Tensor]]:
    """Of the one example, and of the one of the contrast: its features, and what the objective has of it."""
    found = list[tuple[Mapping[str, Any], Tensor]]()
    for risk in asked.risks(chain.last):
        (batch,) = risk.read([[0]])
        outputs = risk.outputs(risk.trained_values, risk.inherited_values, batch).detach()
        found.append((asked.data[0] if not found else asked.contrast[0], outputs))
    return found


def decoded(tokenizer: Any, before: Sequence[int]) -> Callable[[Sequence[int]], list[str]]:
    """From tokens that follow others to their texts, each with the blank before it."""

    def texts(tokens: Sequence[int]) -> list[str]:
        found, told = list[str](), str(tokenizer.decode(list(before))) if before else ""
        for place, token in enumerate(tokens):
            whole = str(tokenizer.decode([*before, *tokens[: place + 1]]))
            found.append(whole.removeprefix(told) if whole.startswith(told) else str(tokenizer.decode([token])))
            told = whole
        return found

    return texts

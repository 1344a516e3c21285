"""A prompt and what a language model said to it, as rows that are read like any others."""

from collections.abc import Sequence
from typing import Any, cast

from stagetrace.errors import DataError, refuse
from stagetrace.hf.columns import TOKENISED
from stagetrace.hf.conversations import Message, check_messages, check_no_other_chat, last_turn, messages_of
from stagetrace.hf.modal import Illustrated
from stagetrace.hf.packages import base_of
from stagetrace.hf.reader import Reader
from stagetrace.hf.rows import first_row
from stagetrace.hf.sentences import Sentences
from stagetrace.hf.task import Task, task_of
from stagetrace.hf.texts import COMPLETION
from stagetrace.hf.tokenizing import longest_of
from stagetrace.stages.stage import Stage
from stagetrace.tracing.query import WHERE

Prompt = str | Sequence[Message]


def asked_row(prompt: Prompt, completion: str | None, stage: Stage, where: str) -> dict[str, Any]:
    """The row of a completion after its prompt.

    A prompt of text stays text, and both are tokenised together. A beginning-of-text token that the tokenizer adds by
    itself is taken off the prompt. A conversation goes through the chat template, the completion as its last turn.

    Raises:
        DescriptionError: the stage is no causal language model, has no tokenizer, or something is missing.
        DataError: the completion is empty, or does not fit into what the model reads.
    """
    task = task_of_stage(stage)
    if task is not Task.CAUSAL:
        refuse(
            f"{where}: a prompt is continued by a causal language model, and {stage.where} is one of {task.value}; "
            "give rows with its data's columns, hf.query([{...}], stage=...), or type why.ask(chain, prompt)"
        )
    if completion is None:
        refuse(
            f"{where}: a completion is missing, which is what is asked about; give completion=, or have the model "
            "write one: stagetrace.why.ask(chain, prompt)"
        )
    if not isinstance(completion, str):
        refuse(f"{where}: completion must be a string, got {type(completion).__name__}")
    if not completion.strip():
        raise DataError(f"{where}: the completion is empty, so nothing is asked")
    tokenizer = asked_tokenizer(stage, where)
    if not isinstance(prompt, str):
        check_prompt_kind(prompt, where)
        if illustrated_of(stage) is not None:  # whose chat template is its processor's
            return {"messages": [*prompt, {"role": "assistant", "content": completion}]}
        row = last_turn(tokenizer, [*prompt, {"role": "assistant", "content": completion}], where)
        check_room(len(row[TOKENISED]), stage, where)
        return dict(row)
    begins = without_bos(tokenizer, prompt)
    if not tokens_before(tokenizer, begins):
        raise DataError(
            f"{where}: the prompt has no token and the tokenizer puts none before a text, so nothing predicts the "
            "completion's first token; give a prompt"
        )
    check_room(len(tokenizer(begins + completion, verbose=False)[TOKENISED]), stage, where)
    return dict(zip(COMPLETION, (begins, completion), strict=True))


def check_prompt_kind(prompt: object, where: str) -> None:
    """Refuse a prompt that is neither a text nor a conversation.

    Raises:
        DescriptionError: it is of another type. DataError: a list of something else than messages.
    """
    if isinstance(prompt, (list, tuple)):
        check_messages(prompt, f"{where}: prompt")
    elif not isinstance(prompt, str):
        refuse(f"{where}: prompt must be a string or a list of messages, got {type(prompt).__name__}")


def without_conversations(rows: Any, stage: Stage) -> Any:
    """Rows of conversations as rows of tokens, the last turn asked for; other rows as they are.

    Raises:
        DataError: a conversation that cannot be read, or some rows are conversations and some are not.
    """
    first = first_row(rows, WHERE)
    if task_of_stage(stage) is not Task.CAUSAL or illustrated_of(stage) is not None:
        return rows
    if messages_of(first) is None:
        read = getattr(getattr(cast(Sentences, stage.data).reader, "columns", None), "texts", ())
        check_no_other_chat(first, read, f"{WHERE}: example 0")
        return rows
    tokenizer, found = asked_tokenizer(stage, WHERE), list[dict[str, list[int]]]()
    for index in range(len(rows)):
        where, row = f"{WHERE}: example {index}", rows[index]
        messages = messages_of(row) if hasattr(row, "keys") else None
        if messages is None:
            check_no_other_chat(row if hasattr(row, "keys") else {}, (), where)
            raise DataError(f"{where} is no conversation, unlike example 0; all rows must have the same columns")
        found.append(last_turn(tokenizer, messages, where))
        check_room(len(found[-1][TOKENISED]), stage, where)
    return found


def without_bos(tokenizer: Any, prompt: str) -> str:
    """The prompt without the beginning-of-text token in its words that the tokenizer would add a second time."""
    token, number = getattr(tokenizer, "bos_token", None), getattr(tokenizer, "bos_token_id", None)
    if not token or not prompt.startswith(token) or list(tokenizer(prompt)[TOKENISED])[:2] != [number, number]:
        return prompt
    return prompt.removeprefix(token)


def tokens_before(tokenizer: Any, prompt: str) -> list[int]:
    """The tokens after which a completion begins: its prompt's, without what a tokenizer puts at the end of a text."""
    tokens = list(tokenizer(prompt, verbose=False)[TOKENISED])
    bare = list(tokenizer(prompt, add_special_tokens=False, verbose=False)[TOKENISED])
    if not bare:
        return [token for token in tokens[:1] if token == tokenizer.bos_token_id]
    stops = range(len(tokens), len(bare) - 1, -1)
    return tokens[: next((stop for stop in stops if tokens[stop - len(bare) : stop] == bare), len(tokens))]


def asked_tokenizer(stage: Stage, where: str) -> Any:
    """The tokenizer of a stage's rows, or that of its collator.

    Raises:
        DescriptionError: it has none.
    """
    tokenizer = tokenizer_of(stage)
    if tokenizer is None:
        refuse(f"{where}: {stage.where} has no tokenizer to read a text with; give it one by hf.stage(..., tokenizer=)")
    return tokenizer


def tokenizer_of(stage: Stage) -> Any:
    """The tokenizer of a stage's rows, or that of its collator; None where there is none."""
    own = getattr(cast(Sentences, stage.data).reader, "tokenizer", None)
    own = getattr(stage.collate, "tokenizer", None) if own is None else own
    return getattr(own, "tokenizer", own)  # that of a processor


def illustrated_of(stage: Stage) -> Illustrated | None:
    """What reads a stage's texts with images; None where its rows are read otherwise."""
    media = getattr(cast(Sentences, stage.data).reader, "media", None)
    return media if isinstance(media, Illustrated) else None


def task_of_stage(stage: Stage) -> Task:
    """What the labels of a stage of `hf.stage` are."""
    reader = cast(Sentences, stage.data).reader
    return reader.task if isinstance(reader, Reader) else task_of(stage.model, stage.objective, stage.where)


def most_tokens(stage: Stage) -> int | None:
    """The tokens after which the stage's texts are cut; None where nothing says."""
    reader = cast(Sentences, stage.data).reader
    if isinstance(reader, Reader) and reader.max_length is not None:
        return reader.max_length
    return longest_of(tokenizer_of(stage), base_of(stage.model))


def check_room(count: int, stage: Stage, where: str) -> None:
    """Refuse more tokens than the stage's model reads: cut, they would be another question.

    Raises:
        DataError: with both numbers.
    """
    most = most_tokens(stage)
    if most is not None and count > most:
        raise DataError(
            f"{where}: prompt and completion are {count:,} tokens, and the texts of {stage.where} are cut after "
            f"{most:,}; shorten them, or give the stage max_length="
        )

"""Conversations as tokens, by the tokenizer's chat template; the last turn, the assistant's, is what is asked for."""

import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from stagetrace.errors import DataError, first_line
from stagetrace.hf.columns import TOKENISED
from stagetrace.hf.texts import CHATS, COMPLETION
from stagetrace.objectives.tokens import IGNORED

Message = Mapping[str, Any]

_MESSAGE = "{'role': ..., 'content': ...}"

MARKED = re.compile(r"\{%-?\s*generation\s*-?%\}")
"""Where a chat template says itself which tokens the assistant wrote."""


def is_chat(value: Any) -> bool:
    """Whether a value is a list of messages."""
    return isinstance(value, (list, tuple)) and bool(value) and isinstance(value[0], Mapping)


def messages_of(row: Mapping[str, Any]) -> list[Message] | None:
    """The messages of a row: of its one conversation, or of a prompt and a completion that are messages.

    None where the row has tokens already, or no conversation.
    """
    if row.get(TOKENISED) is not None:
        return None
    prompt, completion = (row.get(name) for name in COMPLETION)
    if is_chat(prompt) and is_chat(completion):
        return [*prompt, *completion]  # type: ignore[misc]
    found = [row[name] for name in CHATS if is_chat(row.get(name))]
    return list(found[0]) if len(found) == 1 else None


def check_no_other_chat(row: Mapping[str, Any], read: Collection[str], where: str) -> None:
    """Refuse a column that is called like a conversation, holds none, and is all that there is to read.

    read: the columns of texts that the stage reads.

    Raises:
        DataError: with what a conversation is.
    """
    if row.get(TOKENISED) is not None or (read and set(read) <= set(row)):
        return
    name = next((name for name in CHATS if row.get(name) is not None), None)
    if name is not None and not is_chat(row[name]):
        check_messages(row[name], f"{where}: '{name}'")


def last_turn(tokenizer: Any, messages: Sequence[Message], where: str) -> dict[str, list[int]]:
    """`input_ids` of the whole conversation, and `labels` that are -100 but for the last turn.

    A template that marks what the assistant wrote (`{% generation %}`) decides which tokens these are. Of another one
    the conversation is rendered without its last turn too, up to where the assistant begins to write
    (`add_generation_prompt=True`), and what follows counts, the mark of the turn's end included.

    Raises:
        DataError: the last message is not the assistant's, there is no chat template, it refuses the messages, or the
            conversation without its last turn is not how the whole one begins.
    """
    check_messages(messages, where)
    if len(messages) == 1 and messages[0]["role"] == "assistant":
        raise DataError(
            f"{where}: the conversation is the assistant's turn alone, and what is asked for is what it said to "
            "something; put the message that it answers before it, or give what it said as a text"
        )
    if messages[-1]["role"] != "assistant":
        raise DataError(
            f"{where}: the last message is of the role {messages[-1]['role']!r}, and what is asked for is the last "
            "turn of the 'assistant'; end the conversation with it"
        )
    template = _template(tokenizer, where)
    if MARKED.search(template):
        found = _rendered(tokenizer, messages, where, return_assistant_tokens_mask=True)
        tokens, last = list(found[TOKENISED]), last_run(found["assistant_masks"])
        before = list(_rendered(tokenizer, messages[:-1], where)[TOKENISED])
        if tokens[: len(before)] == before:  # a turn that ends in a blank is marked too far where blanks are no tokens
            last = range(max(last.start, len(before)), last.stop)
        if not last:
            raise DataError(f"{where}: the chat template marks no token of the last turn as the assistant's")
        return {TOKENISED: tokens, "labels": [t if place in last else IGNORED for place, t in enumerate(tokens)]}
    tokens = list(_rendered(tokenizer, messages, where)[TOKENISED])
    before = begun(tokenizer, messages[:-1], where)
    if tokens[: len(before)] != before:
        raise DataError(
            f"{where}: by this tokenizer's chat template the conversation does not begin with what its prompt alone "
            "gives, so the last turn's tokens cannot be told apart; use a template with {% generation %} marks, or "
            f"tokenise yourself into '{TOKENISED}' and 'labels'"
        )
    return {TOKENISED: tokens, "labels": [IGNORED] * len(before) + tokens[len(before) :]}


def begun(tokenizer: Any, messages: Sequence[Message], where: str) -> list[int]:
    """The tokens of a conversation up to where the assistant begins to write.

    Raises:
        DataError: as for `last_turn`.
    """
    check_messages(messages, where)
    _template(tokenizer, where)
    return list(_rendered(tokenizer, messages, where, add_generation_prompt=True)[TOKENISED])


def check_messages(messages: Any, where: str) -> None:
    """Refuse what is no list of messages, each with a role and a content.

    Raises:
        DataError: see above.
    """
    if isinstance(messages, (list, tuple)) and not messages:
        raise DataError(f"{where}: a conversation must be a list of messages, and there is none")
    if not isinstance(messages, (list, tuple)):
        raise DataError(f"{where}: a conversation must be a list of messages, {_MESSAGE}, got {repr(messages)[:80]}")
    for number, message in enumerate(messages):
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str) or "content" not in message:
            raise DataError(
                f"{where}: message {number} must be {_MESSAGE}, got {repr(message)[:80]}"
                + ("; conversations are given one in a row" if is_chat(message) else "")
            )


def _template(tokenizer: Any, where: str) -> str:
    template = getattr(tokenizer, "chat_template", None)
    if not isinstance(template, str) or not template:
        raise DataError(
            f"{where} is a conversation, and the stage's tokenizer has no chat template (or several); set "
            "tokenizer.chat_template to that of training, or give texts"
        )
    return template


def _rendered(tokenizer: Any, messages: Sequence[Message], where: str, **how: Any) -> Mapping[str, Any]:
    try:
        return tokenizer.apply_chat_template([dict(each) for each in messages], tokenize=True, return_dict=True, **how)
    except Exception as cause:  # whatever a template raises
        raise DataError(f"{where}: the chat template refuses these messages ({first_line(cause)})") from cause


def last_run(marks: Sequence[int]) -> range:
    """The places of the last marks that stand side by side."""
    stop = max((place + 1 for place, mark in enumerate(marks) if mark), default=0)
    start = stop
    while start and marks[start - 1]:
        start -= 1
    return range(start, stop)

"""Conversations with images: which images a turn shows, and which tokens of the whole the assistant wrote."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from stagetrace.errors import DataError, first_line
from stagetrace.hf.conversations import MARKED, check_messages, last_run

Message = dict[str, Any]
Tokens = list[int]
TokensOf = Callable[[str, Sequence[Any]], Tokens]
"""A text with the places of its images, and the images -> its tokens."""


def illustrated(messages: Any, images: Sequence[Any], where: str) -> list[Message]:
    """Messages whose contents are lists of parts, each image in its own: `{"type": "image", "image": ...}`.

    Parts `{"type": "image"}` without one get the row's images in order. Where contents are strings alone, all images
    stand before the first words of the user, as TRL has it.

    Raises:
        DataError: no conversation, a part of another kind, more or fewer images than places for them.
    """
    check_messages(messages, where)
    found = [{**message, "content": _parts(message, f"{where}: message {n}")} for n, message in enumerate(messages)]
    parts = [part for message in found for part in message["content"]]
    if images and not any(part["type"] == "image" for part in parts):
        user = next((n for n, message in enumerate(found) if message["role"] == "user"), None)
        if user is not None and isinstance(messages[user]["content"], str):
            found[user]["content"] = [{"type": "image"} for _ in images] + found[user]["content"]
    empty = [part for message in found for part in message["content"] if part["type"] == "image" and len(part) == 1]
    if len(empty) != len(images):
        raise DataError(
            f"{where}: the messages have {len(empty)} places for images ({{'type': 'image'}}), and the row has "
            f"{len(images)} images; give one image for each place"
        )
    for part, image in zip(empty, images, strict=True):
        part["image"] = image
    return found


def shown(messages: Sequence[Message]) -> list[Any]:
    """The images of some messages, in order."""
    return [part["image"] for message in messages for part in message["content"] if part["type"] == "image"]


def of_assistant(
    processor: Any, messages: Sequence[Message], tokens_of: TokensOf, where: str, *, since: int = 0, last: bool = False
) -> list[bool]:
    """At which tokens of the whole conversation the assistant wrote.

    By the chat template's own marks (`{% generation %}`), else by what follows the mark with which its turn begins, up
    to where its turn ends, the mark of the end included.

    Args:
        tokens_of: makes the tokens of a rendered text.
        since: the first message whose tokens count. last: of the last turn alone.

    Raises:
        DataError: the assistant says nothing, or the template renders a beginning otherwise than within the whole.
    """
    turns = [n for n, message in enumerate(messages) if message["role"] == "assistant" and n >= since]
    if not turns or (last and turns[-1] != len(messages) - 1):
        raise DataError(
            f"{where}: {'the last message is not' if turns else 'no message is'} of the role 'assistant', whose turns "
            "are what is predicted; end the conversation with one"
        )
    whole = tokens_of(rendered(processor, messages, where), shown(messages))
    if not since and MARKED.search(str(processor.chat_template)):
        marks = _marks(processor, messages, where)
        if len(marks) == len(whole) and any(marks):
            places = last_run(marks) if last else range(len(marks))
            return [bool(mark) and place in places for place, mark in enumerate(marks)]
    wrote = [False] * len(whole)
    for turn in turns[-1:] if last else turns:
        before = tokens_of(rendered(processor, messages[:turn], where, begins=True), shown(messages[:turn]))
        until = messages[: turn + 1]
        through = tokens_of(rendered(processor, until, where), shown(until))
        if whole[: len(before)] != before or whole[: len(through)] != through:
            raise DataError(
                f"{where}: by this processor's chat template the conversation does not begin with what its first "
                f"{turn + 1} messages alone give, so the assistant's tokens cannot be told apart; use a template with "
                "{% generation %} marks, or give rows with 'input_ids', 'labels' and the features of the images"
            )
        wrote[len(before) : len(through)] = [True] * (len(through) - len(before))
    return wrote


def rendered(processor: Any, messages: Sequence[Message], where: str, *, begins: bool = False) -> str:
    """A conversation as text, each image a mark. begins: up to where the assistant begins to write.

    Raises:
        DataError: the processor has no chat template, or it refuses the messages.
    """
    if not isinstance(getattr(processor, "chat_template", None), str):
        raise DataError(
            f"{where} is a conversation, and {type(processor).__name__} has no chat template (or several); set "
            "processor.chat_template to that of training, or give texts"
        )
    try:
        return processor.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=begins)
    except Exception as cause:  # whatever a template raises
        raise DataError(f"{where}: the chat template refuses these messages ({first_line(cause)})") from cause


def _marks(processor: Any, messages: Sequence[Message], where: str) -> list[int]:
    """What the template marks, token by token; none where the processor cannot say."""
    try:
        found = processor.apply_chat_template(
            list(messages),
            tokenize=True,
            return_dict=True,
            return_assistant_tokens_mask=True,
            processor_kwargs={"add_special_tokens": False},
        )
    except Exception as cause:  # whatever a template raises
        raise DataError(f"{where}: the chat template refuses these messages ({first_line(cause)})") from cause
    marks = found.get("assistant_masks", [[]])[0]
    return [int(mark) for mark in marks]


def _parts(message: Mapping[str, Any], where: str) -> list[Message]:
    """A message's content as parts; `datasets` fills what a part has not with None."""
    content = message["content"]
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    if not isinstance(content, (list, tuple)) or not all(isinstance(part, Mapping) for part in content):
        raise DataError(
            f"{where}: content must be a string or a list of parts, {{'type': 'text', 'text': ...}} or "
            f"{{'type': 'image'}}, got {repr(content)[:60]}"
        )
    parts = [{name: value for name, value in part.items() if value is not None} for part in content]
    for part in parts:
        if part.get("type") == "text" and isinstance(part.get("text"), str):
            continue
        if part.get("type") != "image" or set(part) - {"type", "image", "path"}:
            raise DataError(
                f"{where}: a part must be {{'type': 'text', 'text': ...}} or {{'type': 'image'}} with its image, a "
                f"local 'path', or one of the row's images, got {repr(part)[:60]}"
            )
        if "path" in part:
            part["image"] = part.pop("path")
    return parts

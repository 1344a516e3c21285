"""The turns of a row that is a conversation, or several: messages, prompts with completions, preferences."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, cast

from stagetrace.report.preview import Turn, whole_characters

__all__ = ["TURNS", "conversation_of", "held_in"]

TURNS = 12
"""Messages of a conversation that are kept."""

_PREFERENCE = ("chosen", "rejected")
_ORDER = ("system", "prompt", "completion", *_PREFERENCE)
_PLACES = {"system": -1, **{name: place for place, name in enumerate(_ORDER) if place}}
_WORD = 40
_THOUGHT = ("reasoning_content", "reasoning", "thinking")
_CALLS = ("tool_calls", "function_call")

Message = Mapping[str, Any]


def conversation_of(fields: Mapping[str, Any], longest: int) -> tuple[list[Turn], int]:
    """The turns that are kept, each of at most `longest` characters, and how many more there are; none of other rows.

    A row is a conversation where a column holds messages, or where it has an answer that was `chosen` and one that was
    `rejected`. Where there are several columns, their names stand before the roles, and messages with which both
    answers begin are told once.
    """
    columns = _columns(fields)
    several = len(columns) - ("system" in columns) > 1
    told = [
        _turn(name if several and name != "system" else "", message, longest)
        for name, messages in columns.items()
        for message in messages
    ]
    return told[:TURNS], max(0, len(told) - TURNS)


def held_in(fields: Mapping[str, Any]) -> list[Any]:
    """Pictures and sounds, or what else is no text, that stand between the words of a row's messages."""
    parts = [
        part
        for messages in _columns(fields).values()
        for message in messages
        for part in _list(_content(message))
        if isinstance(part, Mapping)
    ]
    held = [part.get(str(part.get("type"))) for part in parts if part.get("type") != "text"]
    return [each for each in held if each is not None]


def _columns(fields: Mapping[str, Any]) -> dict[str, list[Message]]:
    """The messages of each column that has some; texts that go with them become messages without a role."""
    found = {name: _messages(value) for name, value in fields.items()}
    chats = {name: messages for name, messages in found.items() if messages}
    preference = all(name in chats or isinstance(fields.get(name), str) for name in _PREFERENCE)
    if not chats and not preference:
        return {}
    texts = {name: fields[name] for name in _ORDER if isinstance(fields.get(name), str)}
    if not preference and not set(chats) & set(_ORDER):  # a prompt beside whole conversations repeats their beginning
        texts = {name: text for name, text in texts.items() if name == "system"}
    chats |= {name: [{"role": "system" if name == "system" else "", "content": text}] for name, text in texts.items()}
    if preference:
        chats = _told_once({name: messages for name, messages in chats.items() if name in _ORDER})
    return dict(sorted(chats.items(), key=lambda pair: _PLACES.get(pair[0], 0)))


def _told_once(chats: dict[str, list[Message]]) -> dict[str, list[Message]]:
    """The columns of a preference, with the messages with which both answers begin in the prompt."""
    chosen, rejected = (chats[name] for name in _PREFERENCE)
    said = [[(_role(each), _text(each)) for each in messages] for messages in (chosen, rejected)]
    same = next((n for n, (a, b) in enumerate(zip(*said, strict=False)) if a != b), min(len(chosen), len(rejected)))
    if not same or same == min(len(chosen), len(rejected)):  # nothing, or nothing else
        return chats
    texts = {text for _, text in said[0][:same]}
    before = [each for each in chats.get("prompt", []) if _text(each) not in texts]
    return chats | {"prompt": [*before, *chosen[:same]], "chosen": chosen[same:], "rejected": rejected[same:]}


def _messages(value: Any) -> list[Message]:
    """The messages of a value that is a list of some; else none."""
    if not isinstance(value, list | tuple) or not value:
        return []
    found = cast("Sequence[Any]", value)
    return list(found) if all(isinstance(each, Mapping) and _is_message(each) for each in found) else []


def _is_message(value: Message) -> bool:
    return ("role" in value and ("content" in value or any(value.get(name) for name in _CALLS))) or (
        "from" in value and "value" in value
    )


def _content(message: Message) -> Any:
    return message.get("content") if "role" in message else message.get("value")


def _role(message: Message) -> str:
    said = (message.get("role" if "role" in message else "from"), message.get("name"))
    return whole_characters(" ".join(str(word) for word in said if word))[:_WORD]


def _turn(part: str, message: Message, longest: int) -> Turn:
    text = whole_characters(_text(message))
    return Turn(whole_characters(part)[:_WORD], _role(message), text[:longest], max(0, len(text) - longest))


def _text(message: Message) -> str:
    """What a message says: its thoughts, its words, what it calls, and in brackets what is no text."""
    thoughts = [f"[thinks] {message[name]}" for name in _THOUGHT if message.get(name)]
    words = [_in_words(part) for part in _list(_content(message))]
    calls = [f"[calls] {_call(call)}" for name in _CALLS for call in _list(message.get(name))]
    return "\n".join(filter(None, [*thoughts, *words, *calls]))


def _list(value: Any) -> list[Any]:
    if value is None:
        return []
    return list(cast("Sequence[Any]", value)) if isinstance(value, list | tuple) else [value]


def _in_words(part: Any) -> str:
    if isinstance(part, str):
        return part
    if isinstance(part, Mapping) and isinstance(part.get("text"), str) and part.get("type", "text") == "text":
        return part["text"]
    if isinstance(part, Mapping) and isinstance(part.get("type"), str):
        return f"[{part['type'].removesuffix('_url')}]"
    return _json(part)


def _call(call: Any) -> str:
    """A call of a tool as code: `name(arguments)`."""
    called = call.get("function", call) if isinstance(call, Mapping) else call
    if not isinstance(called, Mapping) or "name" not in called:
        return _json(call)
    given = called.get("arguments")
    return f"{called['name']}({given if isinstance(given, str) else _json(given or {})})"


def _json(value: Any) -> str:
    try:
        return json.dumps(value, ensure_ascii=False, default=lambda each: type(each).__name__)
    except (TypeError, ValueError):
        return type(value).__name__

"""A preview as the values that a page shows: pictures and sounds as addresses that hold them, words as they are."""

import base64
from collections.abc import Mapping
from typing import Any, cast

from stagetrace.report.picture import LARGEST, is_png
from stagetrace.report.preview import Preview, Sound
from stagetrace.report.wav import COLUMNS, drawn
from stagetrace.report.words import heard

__all__ = ["compact", "data_uri", "shown"]

WAVE = f"0 0 {COLUMNS} 32"
"""The box of a sound's outline."""


def shown(item: Preview) -> dict[str, Any]:
    """What an example looks and sounds like, each part also where it is empty."""
    return {
        "kind": item.kind,
        "text": item.text,
        "images": [data_uri(image) for image in item.images if is_png(image, LARGEST)],
        "sounds": [_sound(sound) for sound in item.sounds],
        "turns": [{"part": turn.part, "role": turn.role, "text": turn.text, "cut": turn.cut} for turn in item.turns],
        "fields": [list(pair) for pair in item.fields],
        "cut": item.cut,
        "more": list(item.more),
        "label": item.label,
        "pieces": list(item.pieces),
    }


def compact(values: Mapping[str, Any]) -> dict[str, Any]:
    """The same without what is empty."""
    found = dict[str, Any]()
    for name, value in values.items():
        held = cast("list[Any]", value) if isinstance(value, list) else []
        parts = [compact(part) if isinstance(part, dict) else part for part in held]
        if value not in ("", [], 0, None):
            found[name] = parts or value
    return found


def data_uri(content: bytes, kind: str = "image/png") -> str:
    """A file as an address that holds all of it."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def _sound(sound: Sound) -> dict[str, str]:
    """What plays, how much of it that is in words, and its outline; `Sound` has looked at the file."""
    return {
        "address": data_uri(sound.wav, "audio/wav"),
        "heard": heard(sound),
        "box": WAVE,
        "outline": drawn(sound.wav),
        "name": sound.name,
    }

"""Files of pictures and sounds within rows: bytes, or `{'bytes', 'path'}` as data sets have them undecoded."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, cast

__all__ = ["COLUMNS", "SOUNDS", "as_file", "content_of", "is_file_of_row", "kind_of"]

SOUNDS = ("audio", "sound", "speech", "clip", "waveform", "wav")
COLUMNS = frozenset({"image", "images", "img", "picture", "pictures", "photo", *SOUNDS})
"""Columns in which a text is the path of a file, if it is one; the first are those of sounds alone."""

_PICTURES = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF8", b"II*\0", b"MM\0*", b"BM")
_SOUNDS = (b"RIFX", b"RF64", b"fLaC", b"OggS", b"ID3", b"\xff\xfb", b"\xff\xf3", b"\xff\xf2")


def is_file_of_row(value: Any) -> bool:
    """Whether a value is bytes, or has them or the path of them."""
    if isinstance(value, bytes | bytearray):
        return True
    return isinstance(value, Mapping) and set(value) <= {"bytes", "path"} and any(value.values())


def as_file(name: str, value: Any) -> Any:
    """Of a column of pictures or sounds, by its name, a path (or a list of some) as files; other values as they are."""
    if isinstance(value, list | tuple):
        return [as_file(name, each) for each in cast("Sequence[Any]", value)] if name.lower() in COLUMNS else value
    if name.lower() not in COLUMNS or not isinstance(value, str | Path) or not str(value):
        return value
    try:
        path = Path(value).expanduser()
        with path.open("rb") as file:
            return value if kind_of(file.read(16)) is None else {"bytes": None, "path": path}
    except (OSError, RuntimeError, ValueError):  # a text that is no path
        return value


def content_of(value: Any) -> bytes:
    """The bytes; those of a path are read, from this machine only.

    Raises:
        OSError: no such file.
    """
    held = value.get("bytes") if isinstance(value, Mapping) else value
    return Path(value["path"]).read_bytes() if held is None else bytes(held)


def kind_of(content: bytes) -> Literal["picture", "sound"] | None:
    """What a file is by its first bytes; None of others."""
    if content[:4] == b"RIFF":  # a container of either
        return {b"WAVE": "sound", b"WEBP": "picture"}.get(content[8:12])  # pyright: ignore[reportReturnType]
    if content.startswith(_PICTURES):
        return "picture"
    return "sound" if content.startswith(_SOUNDS) else None

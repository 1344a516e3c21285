"""Which column of a data set holds the images or sounds, and what a cell of it may be."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from stagetrace.errors import DataError, refuse
from stagetrace.hf.packages import is_of
from stagetrace.hf.rows import present
from stagetrace.hf.texts import having

IMAGES = ("image", "img", "picture", "photo")
SOUNDS = ("audio", "sound", "speech", "clip", "waveform", "wav", "flac", "mp3")


def column_of(
    row: Mapping[str, Any], names: tuple[str, ...], is_one: Callable[[Any], bool], noun: str, reads: str, where: str
) -> str:
    """The column with the images (or sounds): one of a known name, else the only one that holds such things.

    Args:
        reads: what the model reads, for the message.

    Raises:
        DescriptionError: there is none, or several could be meant.
    """
    held = [name for name in present(row) if is_one(row[name])]
    named = [name for name in present(row) if name.lower() in names]
    for found in (named, [name for name in named if name in held], held):
        if len(found) == 1:
            return found[0]
    several = named or held
    if several:
        refuse(
            f"{where}: several columns could hold the {noun} ({', '.join(map(repr, several))}); leave the others out, "
            f"e.g. data.remove_columns({several[1]!r})"
        )
    refuse(
        f"{where}: the model reads '{reads}', which no column holds, and none holds {noun}s{having(row)}; name one "
        f"'{names[0]}', e.g. data.rename_column({next(iter(row), '')!r}, '{names[0]}')"
    )


def is_image(value: Any) -> bool:
    """Whether a value is an image beyond doubt: of PIL, or an array of height, width and colours."""
    if is_of(value, "PIL", "Image") or _is_file(value):
        return True
    shape = getattr(value, "shape", ())
    return len(shape) == 3 or (len(shape) == 2 and "uint8" in str(getattr(value, "dtype", "")))


def is_sound(value: Any) -> bool:
    """Whether a value is a sound beyond doubt: samples with their rate, a decoder, a file."""
    with_rate = isinstance(value, Mapping) and {"array", "sampling_rate"} <= set(value)
    return with_rate or hasattr(value, "get_all_samples") or _is_file(value)


def array_of(value: Any) -> np.ndarray[Any, Any]:
    """A value as an array; of kind "O" where its rows are of unequal length, say."""
    try:
        return np.asarray(value)
    except ValueError:
        return np.asarray(None)


def _is_file(value: Any) -> bool:
    return isinstance(value, Mapping) and bool(value) and set(value) <= {"bytes", "path"}


def bytes_of(value: Any, where: str) -> bytes | None:
    """The content of a file that a cell holds (`{'bytes': ..., 'path': ...}`) or names; None where it is no file.

    Only local paths are opened.

    Raises:
        DataError: the file cannot be read.
    """
    if isinstance(value, (bytes, bytearray)):
        return bytes(value)
    if _is_file(value):
        if value.get("bytes") is not None:
            return bytes(value["bytes"])
        value = value.get("path")
        if value is None:
            raise DataError(f"{where} has neither 'bytes' nor a 'path'; leave the example out")
    if not isinstance(value, (str, Path)):
        return None
    try:
        return Path(value).expanduser().read_bytes()
    except OSError as cause:
        raise DataError(f"{where} is the path '{value}', which cannot be read ({cause.strerror or cause})") from cause

"""What can be seen and heard of an example: the pictures and sounds in its columns, and what of them cannot be read."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, final

from stagetrace.report import picture
from stagetrace.report.encoded import as_file, content_of, is_file_of_row, kind_of
from stagetrace.report.fields import describe_value, short, without_places
from stagetrace.report.preview import Sound
from stagetrace.report.sound import is_sound, is_waveform, sound_of

__all__ = ["IMAGES", "SOUNDS", "Media", "has_picture", "left_out", "why"]

IMAGES, SOUNDS = 4, 3
"""Pictures and sounds of an example that are kept."""


@final
@dataclass(frozen=True)
class Media:
    """The first pictures, as PNG, and sounds of an example.

    columns: which held some. more: in words how many others there are. problems: names and values of a table, of what
        could not be read.
    """

    images: tuple[bytes, ...]
    sounds: tuple[Sound, ...]
    columns: frozenset[str]
    more: tuple[str, ...]
    problems: tuple[tuple[str, str], ...]

    @staticmethod
    def of(fields: Mapping[str, Any], held: Sequence[Any], rate: float | None) -> "Media":
        """Of an example's parts by name.

        held: what stands between the words of its messages; rate: of waveforms, in Hz.
        """
        pictures, sounds = list[tuple[str, Any]](), list[tuple[str, Any]]()
        problems, columns = dict[str, str](), set[str]()
        for name, given in [*fields.items(), *(("image", part) for part in held)]:
            value = as_file(name, given)
            try:
                if is_sound(value) or is_waveform(name, value):
                    sounds.append((name, value))
                elif picture.available() and (some := picture.pictures_of(value)):
                    pictures += [(name, each) for each in some]
                elif isinstance(value, Mapping) and is_file_of_row(value):
                    raise ValueError(_reason(value))
                else:
                    continue
            except Exception as cause:
                problems[name] = f"not readable: {why(cause)}"
            columns.add(name)
        seen, heard = list[bytes](), list[Sound]()
        for name, value in pictures[:IMAGES]:
            try:
                seen.append(picture.png(value))
            except Exception as cause:
                problems[name] = f"not readable: {why(cause)}"
        for name, value in sounds[:SOUNDS]:
            try:
                heard.append(replace(sound_of(value, rate), name=short(name) if len(sounds) > 1 else ""))
            except Exception as cause:
                shape = f"; {describe_value(value)}" if is_waveform(name, value) else ""
                problems[name] = f"not readable: {why(cause)}{shape}"
        more = (left_out(len(pictures) - IMAGES, "picture"), left_out(len(sounds) - SOUNDS, "sound"))
        told = tuple((short(name), short(said)) for name, said in problems.items())
        return Media(tuple(seen), tuple(heard), frozenset(columns), tuple(filter(None, more)), told)


def has_picture(fields: Mapping[str, Any]) -> bool:
    """Whether an example has a picture, pillow or not."""
    try:
        return any(picture.pictures_of(part) for part in fields.values())
    except Exception:  # its preview says so
        return False


def left_out(count: int, what: str) -> str:
    """So many more of what is shown, in words; nothing of none.

    Example:
        >>> left_out(3, "picture"), left_out(0, "turn")
        ('3 more pictures are not shown', '')
    """
    return "" if count <= 0 else f"{count:,} more {what}{'s are' if count > 1 else ' is'} not shown"


def why(cause: Exception) -> str:
    """What went wrong, in a cell."""
    return short(without_places(f"{type(cause).__name__}: {cause}"))


def _reason(value: Mapping[str, Any]) -> str:
    """Why a file within a row is not shown."""
    if kind_of(content_of(value)) == "picture":
        return "a picture needs pillow; type: pip install 'stagetrace[report]'"
    return "neither a picture nor a sound of a known kind"

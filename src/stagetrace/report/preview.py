"""One example as people see it: pictures, sounds, turns of a conversation, text or a table, and what was left out."""

from dataclasses import dataclass, field
from typing import Literal, final, get_args

from stagetrace.errors import refuse
from stagetrace.report.wav import frames_of

__all__ = ["Kind", "Preview", "Sound", "Turn", "whole_characters"]

Kind = Literal["image", "text", "table", "audio", "conversation"]


@final
@dataclass(frozen=True)
class Sound:
    """What can be heard of an example.

    wav: its beginning as `wav.encode` writes it: mono, 16 bits, at 8,000 to 16,000 Hz.
    seconds: how long all of it is.
    name: its column, where there are several; "" otherwise.

    Raises:
        DescriptionError: other bytes, or fewer seconds than the bytes hold.
    """

    wav: bytes = field(repr=False)
    seconds: float
    name: str = ""

    @property
    def kept(self) -> float:
        """Seconds that can be heard."""
        frames, rate = frames_of(self.wav) or (0, 1)
        return frames / rate

    @property
    def is_cut(self) -> bool:
        """Whether there is more of it than can be heard; resampling moves an end by less than 1 ms."""
        return self.seconds - self.kept > 1e-3

    def __post_init__(self) -> None:
        if frames_of(self.wav) is None:
            refuse(f"Sound: wav must be a mono WAV file of 16 bits as stagetrace writes it, got {len(self.wav)} bytes")
        if not self.kept - 1e-3 <= self.seconds < float("inf"):
            refuse(f"Sound: seconds must be at least the {self.kept:.3f} s that are kept, got {self.seconds}")


@final
@dataclass(frozen=True)
class Turn:
    """One message of a conversation.

    part: `chosen`, `rejected` or whatever else the column says, where a row has several; "" otherwise.
    role: who speaks, in the data's own word; "" where it does not say.
    cut: characters of the text that were left out at its end.
    """

    part: str
    role: str
    text: str
    cut: int = 0

    @property
    def who(self) -> str:
        """Part and role in words."""
        return " ".join(filter(None, (self.part, self.role)))


@final
@dataclass(frozen=True)
class Preview:
    """What one example looks like: all that is not empty is shown.

    stage: whose example it is; None for a query example.
    index: in that data set.
    kind: what it is above all; a picture may have a text, a conversation pictures.
    images: as PNG. fields: pairs of a name and a value. cut: characters of the text that were left out at its end.
    more: what else was left out, in words.
    label: the example's class or target in words; "" if the data does not say.
    prediction, loss: of a query example, by the last stage's model; loss is None where it was not measured.
    pieces: of a text whose tokens have scores, the tokens in words, one for each position.

    Raises:
        DescriptionError: a kind that does not exist, or a negative index.
    """

    stage: str | None
    index: int
    kind: Kind
    text: str = ""
    images: tuple[bytes, ...] = ()
    sounds: tuple[Sound, ...] = ()
    turns: tuple[Turn, ...] = ()
    fields: tuple[tuple[str, str], ...] = ()
    cut: int = 0
    more: tuple[str, ...] = ()
    label: str = ""
    prediction: str = ""
    loss: float | None = None
    pieces: tuple[str, ...] = ()

    @property
    def look(self) -> tuple[object, ...] | None:
        """What people see of an example: equal for two that look the same; None where not all of it was kept."""
        cut = self.cut or self.more or any(turn.cut for turn in self.turns) or any(each.is_cut for each in self.sounds)
        if cut or any(value.endswith("...") for _, value in self.fields):
            return None
        return self.kind, self.text, self.images, self.sounds, self.turns, self.fields, self.label

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            refuse(f"Preview: kind must be one of {', '.join(get_args(Kind))}, got {self.kind!r}")
        if self.index < 0:
            refuse(f"Preview: index must be at least 0, got {self.index}")


def whole_characters(text: str) -> str:
    """The text without halves of characters, which no file can hold: those are written out."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")

"""An example in words, for a line of a terminal and for readers of a page that cannot see or hear it."""

from stagetrace.report.preview import Preview, Sound
from stagetrace.report.sound import in_seconds

__all__ = ["heard", "in_words"]


def in_words(item: Preview) -> str:
    """What an example says; "" of one picture alone, which has no words.

    Example:
        >>> from stagetrace.report.preview import Turn
        >>> turns = Turn("", "user", "Two and two?"), Turn("", "assistant", "Four.")
        >>> in_words(Preview(None, 0, "conversation", turns=turns))
        'user: Two and two? / assistant: Four.'
    """
    said = [f"{turn.who}: {turn.text}" if turn.who else turn.text for turn in item.turns] or [item.text]
    said = [*filter(None, said)] or [f"{name}: {value}" for name, value in item.fields]
    words = (" / " if item.turns else ", ").join(said)
    pictures = "pictures" if len(item.images) > 1 else "picture" if item.images and words else ""
    return ": ".join(filter(None, [", ".join(filter(None, [*map(_length, item.sounds), pictures])), words]))


def heard(sound: Sound) -> str:
    """How long a sound is, and how much of it can be heard.

    Example:
        >>> import torch
        >>> from stagetrace.report.sound import sound_of
        >>> heard(sound_of({"array": torch.zeros(272_000), "sampling_rate": 8_000}))
        'the first 10.0 s of 34.0 s'
    """
    if not sound.is_cut:
        return in_seconds(sound.seconds)
    return f"the first {in_seconds(sound.kept)} of {in_seconds(sound.seconds)}"


def _length(sound: Sound) -> str:
    return f"{f'audio {sound.name}'.strip()}, {in_seconds(sound.seconds)}"

"""Texts that a decoder writes of an image or a sound."""

from typing import Any

from stagetrace.hf.packages import base_of

SPOKEN = ("input_values", "input_features")
"""What models read whose targets are tokenised as in the recipes for speech."""


def decoder_of(model: Any) -> Any:
    """The part of a model that writes: how long a text may be is a matter of its positions."""
    base = base_of(model)
    return getattr(base, "get_decoder", lambda: None)() or base


def begins_with(model: Any, main: str) -> int | None:
    """The token that a target of speech does not begin with, though the tokenizer puts it there.

    The decoder's inputs are the labels behind that token, so it would stand there twice (Whisper's
    `<|startoftranscript|>`): the collators of the usual recipes take it off. None where nothing is taken off.

    main: what the model reads. Decoders of images keep it, as in their recipes.
    """
    found = getattr(base_of(model).config, "decoder_start_token_id", None)
    return found if main in SPOKEN and isinstance(found, int) else None

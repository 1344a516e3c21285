"""Images and sounds: what a model reads of them is made by its own processor, when a row is read.

A row passes through here before its labels are read: a column of images becomes `pixel_values`, one of sounds
`input_values` or `input_features`, as `transformers` would make them, and the other columns stay.
"""

from stagetrace.hf.modal.find import media_of as media_of
from stagetrace.hf.modal.find import tokenizer_beside as tokenizer_beside
from stagetrace.hf.modal.media import Media as Media
from stagetrace.hf.modal.padding import check_padding as check_padding
from stagetrace.hf.modal.sounds import Sounds as Sounds
from stagetrace.hf.modal.targets import begins_with as begins_with
from stagetrace.hf.modal.targets import decoder_of as decoder_of

__all__ = ["Media", "Sounds", "begins_with", "check_padding", "decoder_of", "media_of", "tokenizer_beside"]

"""Images and sounds: what a model reads of them is made by its own processor, when a row is read.

A row passes through here before its labels are read: a column of images becomes `pixel_values`, one of sounds
`input_values` or `input_features`, as `transformers` would make them, and the other columns stay. A text with images
becomes tokens, pixels and labels.
"""

from stagetrace.hf.modal.concatenated import Concatenated as Concatenated
from stagetrace.hf.modal.concatenated import collated_by as collated_by
from stagetrace.hf.modal.concatenated import of_images as of_images
from stagetrace.hf.modal.find import media_of as media_of
from stagetrace.hf.modal.find import tokenizer_beside as tokenizer_beside
from stagetrace.hf.modal.illustrated import Illustrated as Illustrated
from stagetrace.hf.modal.illustrated import of_one as of_one
from stagetrace.hf.modal.media import Media as Media
from stagetrace.hf.modal.padding import check_padding as check_padding
from stagetrace.hf.modal.sounds import Sounds as Sounds
from stagetrace.hf.modal.targets import begins_with as begins_with
from stagetrace.hf.modal.targets import decoder_of as decoder_of

__all__ = [
    "Concatenated",
    "Illustrated",
    "Media",
    "Sounds",
    "begins_with",
    "check_padding",
    "collated_by",
    "decoder_of",
    "media_of",
    "of_images",
    "of_one",
    "tokenizer_beside",
]

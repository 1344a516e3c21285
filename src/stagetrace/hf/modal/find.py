"""Whether a model reads images or sounds, and what makes features of a data set's."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

from stagetrace.hf.columns import TOKENISED
from stagetrace.hf.modal import cells, processors
from stagetrace.hf.modal.illustrated import Illustrated, marks_of, sources_of
from stagetrace.hf.modal.images import Images, brightness_notices
from stagetrace.hf.modal.media import Media
from stagetrace.hf.modal.sounds import Sounds, check_longest, cut_notices
from stagetrace.hf.packages import base_of
from stagetrace.hf.rows import first_row, present
from stagetrace.hf.signature import reads_images, takes

PIXELS = "pixel_values"
SOUNDS = ("input_values", "input_features")


def media_of(
    rows: Any,
    model: Any,
    main: str,
    given: Any,
    places: Iterable[str],
    longest: int | None,
    where: str,
    text: str | Sequence[str] | None = None,
) -> tuple[Media | None, list[str]]:
    """What makes features of the images or sounds of a data set, and what is to be said of it.

    None where the model reads neither, or where the rows have its features already.

    Args:
        main: the feature that the model cannot be without.
        given: the processor, as it was given. places: where one may lie.
        longest: samples after which sounds are cut, or tokens after which texts with images are.
        text: the columns of a text with images, where they were named.

    Raises:
        DescriptionError: no column can be meant, or there is no processor.
        DataError: the first example cannot be read.
    """
    row = first_row(rows, where)
    if reads_images(model):
        return _illustrated(row, model, given, places, longest, text, where)
    if main not in (PIXELS, *SOUNDS) or main in present(row):
        return None, []
    if main == PIXELS:
        column = cells.column_of(row, cells.IMAGES, cells.is_image, "image", main, where)
        images = Images(column, processors.load_processor(processors.IMAGES, given, places, where))
        return images, brightness_notices(row, images, where)
    column = cells.column_of(row, cells.SOUNDS, cells.is_sound, "sound", main, where)
    extractor = processors.load_processor(processors.SOUNDS, given, places, where)
    check_longest(longest, extractor, where)
    masks = bool(getattr(extractor, "return_attention_mask", False)) and "attention_mask" in takes(model)
    lengths = getattr(base_of(model), "_get_feat_extract_output_lengths", None)
    frames = None if lengths is None or main != "input_values" else lambda samples: int(lengths(torch.tensor(samples)))
    sounds = Sounds(column, extractor, main, longest, masks, frames)
    return sounds, cut_notices(rows, sounds, where)


def _illustrated(
    row: Any,
    model: Any,
    given: Any,
    places: Iterable[str],
    longest: int | None,
    text: str | Sequence[str] | None,
    where: str,
) -> tuple[Media | None, list[str]]:
    """What reads rows of texts with images; None where they are tokenised already and nothing was given."""
    ready = row.get(TOKENISED) is not None
    if ready and given is None:
        return None, []
    processor = processors.load_processor(processors.WHOLE, given, places, where)
    named = () if text is None else (text,) if isinstance(text, str) else tuple(text)
    texts = () if ready else named or sources_of(row, where)
    reader = Illustrated(processor, texts, marks_of(processor, base_of(model).config), longest)
    return reader, [] if ready else [f"{where}: {reader.says(row)}"]


def tokenizer_beside(processor: Any, places: Iterable[str]) -> tuple[Any, tuple[str, ...]]:
    """The tokenizer that a processor holds, and where one may lie: the processor's folder first."""
    folder = (str(processor),) if isinstance(processor, (str, Path)) else ()
    return getattr(processor, "tokenizer", None), (*folder, *places)

"""Whether sounds of unequal length may stand in one batch: their answers must be those that they have alone."""

from collections.abc import Mapping
from typing import Any

import torch

from stagetrace.errors import DataError, refuse
from stagetrace.hf.modal.sounds import Sounds
from stagetrace.hf.packages import base_of
from stagetrace.stages.device import to_device
from stagetrace.stages.sizes import size_of
from stagetrace.stages.stage import Stage

LOOKED_AT = 8
"""Examples spread through the data set, of which the shortest and the longest are compared."""


def check_padding(stage: Stage, sounds: Sounds) -> None:
    """Refuse sounds of unequal length whose losses would hang on what they are batched with.

    Raises:
        DescriptionError: with what to type.
    """
    total = len(stage.data)
    sizes = dict[int, int]()
    for index in range(0, total, max(1, total // LOOKED_AT)):
        try:
            sizes[index] = size_of(stage.data[index][sounds.reads])
        except DataError:  # named when it is read
            continue
    if len(set(sizes.values())) < 2:
        return
    short, long = min(sizes, key=sizes.__getitem__), max(sizes, key=sizes.__getitem__)
    cure = (
        f"max_length={max(sizes.values())} (samples), which cuts longer ones and fills shorter ones with silence, as "
        "training did with padding='max_length'; or cut the sounds to one length"
    )
    extractor, both = (
        type(sounds.processor).__name__,
        f"{sizes[short]:,} and {sizes[long]:,} in examples {short} and {long}",
    )
    if not sounds.masks:
        refuse(
            f"{stage.where}: the sounds have unequal lengths ({both}), and {extractor} does not tell the model what is "
            "padding (return_attention_mask=False), so that a loss would hang on what a sound is batched with; type "
            f"{cure}"
        )
    alone, beside = _answer(stage, [short]), _answer(stage, [short, long])
    gap, room = float((alone[0] - beside[0]).abs().max()), 64 * torch.finfo(alone.dtype).eps * float(alone.abs().max())
    if gap > room:
        model = type(base_of(stage.model)).__name__
        refuse(
            f"{stage.where}: the sounds have unequal lengths ({both}), and {model} answers otherwise to one that is "
            "padded (config.feat_extract_norm='group', which averages over the padding?); give a processor with "
            f"return_attention_mask=False, as such models are trained, and {cure}"
        )


def _answer(stage: Stage, indices: list[int]) -> Any:
    """What the model says of some examples in one batch."""
    some = next(stage.evaluated.parameters())
    (read,) = stage.examples.read([indices])
    batch: Mapping[str, Any] = to_device(read.content, some.dtype, some.device)
    with torch.no_grad():
        return stage.loss.outputs(stage.evaluated, batch)

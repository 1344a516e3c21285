"""Whether sounds of unequal length may stand in one batch: their answers must be those that they have alone."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from stagetrace.errors import BatchError, DataError, refuse
from stagetrace.hf.modal.sounds import Sounds
from stagetrace.hf.packages import base_of
from stagetrace.hf.task import Task
from stagetrace.stages.device import to_device
from stagetrace.stages.sizes import size_of
from stagetrace.stages.stage import Stage

LOOKED_AT = 8
"""Examples spread through the data set, of which the shortest and the longest are compared."""

ROUNDING = 1e-3
"""A relative difference of a loss that may be rounding; the checks before a trace measure more closely."""


def check_padding(stage: Stage, sounds: Sounds, task: Task) -> None:
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
    cure = "cut the sounds to one length beforehand"
    if not task.writes:  # where max_length= is that of the text
        cure = (
            f"type max_length={max(sizes.values())} (samples), which cuts longer ones and fills shorter ones with "
            f"silence, as training did with padding='max_length'; or {cure}"
        )
    both = f"{sizes[short]:,} and {sizes[long]:,} in examples {short} and {long}"
    if not sounds.masks:
        refuse(
            f"{stage.where}: the sounds have unequal lengths ({both}), and the model is not told what is padding "
            f"({type(sounds.processor).__name__}(return_attention_mask=False), or a model that takes no "
            f"attention_mask), so that a loss would hang on what a sound is batched with; {cure}"
        )
    alone, beside = _losses(stage, [short])[0], _losses(stage, [short, long])[0]
    room = max(ROUNDING, 16 * torch.finfo(alone.dtype).eps) * max(float(alone.abs()), ROUNDING)
    if float((alone - beside).abs()) > room:
        model = type(base_of(stage.model)).__name__
        refuse(
            f"{stage.where}: the sounds have unequal lengths ({both}), and {model} answers otherwise to one that is "
            "padded (config.feat_extract_norm='group', which averages over the padding?); give a processor with "
            f"return_attention_mask=False, as such models are trained, and {cure}"
        )


def _losses(stage: Stage, indices: list[int]) -> Tensor:
    """The losses of some examples in one batch, `[batch]`."""
    some = next(stage.evaluated.parameters())
    (read,) = stage.examples.read([indices])
    batch: Mapping[str, Any] = to_device(read.content, some.dtype, some.device)
    with torch.no_grad():
        outputs: Any = stage.loss.outputs(stage.evaluated, batch)
        check = getattr(stage.loss, "check", None)
        if check is not None:  # labels that no loss can be had of are named, and not taken for padding
            try:
                check(batch, tuple(outputs.shape[1:]))
            except BatchError as cause:
                place = indices[cause.position or 0]
                raise DataError(f"{stage.where}: example {place}: {cause}") from cause
        return stage.loss.losses(outputs, batch)

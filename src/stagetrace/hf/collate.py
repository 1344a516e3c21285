"""Examples of unequal length as one batch, padded on the right."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
import torch.nn.functional as F
from torch import Tensor

from stagetrace.errors import DataError, refuse
from stagetrace.hf.packages import base_of
from stagetrace.hf.task import Task
from stagetrace.objectives.tokens import IGNORED

MASKS = ("attention_mask", "decoder_attention_mask", "special_tokens_mask")
SEQUENCES = (*MASKS, "input_ids", "decoder_input_ids", "token_type_ids", "position_ids")
"""Features of whole numbers, one per token: padded along their last axis."""


@final
@dataclass(frozen=True)
class Collation:
    """Pads each feature to the longest of the batch, on the right; padding is masked and has the label -100.

    Padding does not change an example's loss, so any token will do where a model has no padding token of its own.
    Only what has an entry per token is padded; images of unequal size, say, are refused.

    Args:
        pad: the token that pads `input_ids`.
        segment: what pads `token_type_ids`.

    Example:
        >>> long, short = {"input_ids": [1, 2, 3]}, {"input_ids": [4]}
        >>> Collation(pad=9)([long, short])["input_ids"].tolist()
        [[1, 2, 3], [4, 9, 9]]
    """

    pad: int = 0
    segment: int = 0

    def __call__(self, examples: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """`{feature: [batch, length]}`, or `[batch]` for what is one number per example.

        Tokens that were padded get an `attention_mask`, unless `position_ids` say what sees what.

        Raises:
            DataError: two examples have different features, or such that make no batch; a feature is no number.
        """
        names = list(examples[0])
        for example in examples:
            if set(example) != set(names):
                raise DataError(f"examples of one batch have different features: {names} and {list(example)}")
        values = {name: [_tensor(name, example[name]) for example in examples] for name in names}
        lengths = _lengths(values)
        batch = {name: self._stack(name, values[name], lengths) for name in names}
        uneven = lengths is not None and len(set(lengths)) > 1
        if uneven and "input_ids" in names and not {"attention_mask", "position_ids"} & set(names):
            batch["attention_mask"] = _together([torch.ones(length, dtype=torch.int64) for length in lengths or ()], 0)
        return batch

    def _stack(self, name: str, values: list[Tensor], lengths: list[int] | None) -> Tensor:
        shapes = list(dict.fromkeys(tuple(value.shape) for value in values))
        if len(shapes) == 1:
            return torch.stack(values)
        fills = {
            "input_ids": self.pad,
            "decoder_input_ids": self.pad,
            "token_type_ids": self.segment,
            "labels": IGNORED,
        }
        fill = fills.get(name, 0)
        if len({len(shape) for shape in shapes}) == 1:
            sequence = name in SEQUENCES or (name == "labels" and not any(v.is_floating_point() for v in values))
            if sequence and len({shape[:-1] for shape in shapes}) == 1:
                return _together(values, fill)
            of_tokens = lengths is not None and [len(value) for value in values] == lengths
            if of_tokens and name != "labels" and len({shape[1:] for shape in shapes}) == 1:
                return _together([value.movedim(0, -1) for value in values], fill).movedim(-1, 1)
        some = " and ".join(str(list(shape)) for shape in shapes[:2])
        raise DataError(
            f"'{name}' has another size in some examples ({some}), and only what has an entry per token is padded; "
            "give all examples the same size (resize images, cut sounds), or give the stage collate="
        )


def collation_of(model: Any, tokenizer: Any, task: Task, where: str) -> Collation:
    """Padding with the model's padding token, else the tokenizer's, else token 0 behind the attention mask.

    Raises:
        DescriptionError: a classifier that finds the end of a sentence by its padding, without a padding token.
    """
    base = base_of(model)
    pad = _token(base.config)
    if pad is None and not task.of_tokens and hasattr(base, "score"):
        refuse(
            f"{where}: {type(base).__name__} reads its answer off the last token before the padding, but its "
            "config.pad_token_id is not set; type: model.config.pad_token_id = tokenizer.pad_token_id (and save the "
            "model again if it comes from a folder)"
        )
    pad = _token(tokenizer) if pad is None else pad
    return Collation(pad or 0, getattr(tokenizer, "pad_token_type_id", None) or 0)


def _token(owner: Any) -> int | None:
    """The padding token of a configuration or a tokenizer, if it has one."""
    pad = getattr(owner, "pad_token_id", None)
    return pad if isinstance(pad, int) and pad >= 0 else None


def _tensor(name: str, value: Any) -> Tensor:
    """A feature as a tensor; an empty one of tokens is of whole numbers, too.

    Raises:
        DataError: it is no number, or a list of lists of unequal length.
    """
    try:
        tensor = torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError) as cause:
        if isinstance(value, str) or (isinstance(value, (list, tuple)) and any(isinstance(one, str) for one in value)):
            raise DataError(
                f"'{name}' holds text, where the model takes numbers; rows with texts are read by hf.query(rows, "
                "stage=...) and hf.stage(...), not by Query and Stage"
            ) from cause
        raise DataError(f"'{name}' cannot be made a tensor: {type(value).__name__} ({cause})") from cause
    whole = name in SEQUENCES or name == "labels"
    return tensor.long() if whole and tensor.numel() == 0 and tensor.ndim else tensor


def _lengths(values: Mapping[str, list[Tensor]]) -> list[int] | None:
    """The number of tokens (frames, samples) of each example."""
    for name in ("input_ids", "inputs_embeds", "attention_mask"):
        if name in values and values[name][0].ndim:
            return [value.shape[0 if name == "inputs_embeds" else -1] for value in values[name]]
    return None


def _together(values: list[Tensor], fill: float) -> Tensor:
    """Stacked, each padded to the longest along its last axis."""
    longest = max(value.shape[-1] for value in values)
    return torch.stack([F.pad(value, (0, longest - value.shape[-1]), value=fill) for value in values])

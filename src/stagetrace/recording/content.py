"""What a data loader made of some examples, as named tensors and JSON: nothing of it is code."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any, cast, final

import numpy as np
import torch
from torch import Tensor

from stagetrace.errors import DescriptionError, ResultsError

_NARROW = (torch.uint8, torch.int8, torch.int16, torch.int32)
"""What whole numbers are stored as, the first that holds them."""


_REALS = torch.float64, torch.float32, torch.float16, torch.bfloat16
_HELD = frozenset(
    {*_REALS, *_NARROW, torch.bool, torch.int64, torch.uint16, torch.uint32, torch.uint64, torch.complex64}
)
"""What safetensors holds."""

_ENCODING = "BatchEncoding"
"""What tokenizers and collators of transformers give: a mapping whose entries are attributes too."""


Written = tuple[str, dict[str, Tensor]]
"""A batch as a structure in JSON and the tensors in it, by their place."""


@final
class Unwritable(DescriptionError):
    """A batch holds something that has no form in plain files."""


def written(content: Any) -> Written:
    """A batch as a structure in JSON and the tensors in it, by their place.

    Whole numbers are stored as narrowly as they fit. Kept are tensors, NumPy arrays, numbers, strings, None, and
    tuples, lists and mappings of these (a `BatchEncoding` of transformers comes back as one, other mappings as a dict).

    Raises:
        Unwritable: something else is in it; the message names its class.

    Example:
        >>> structure, tensors = written({"x": torch.tensor([3, 500]), "name": "a"})
        >>> tensors["0"].dtype, read(structure, tensors)
        (torch.int16, {'x': tensor([  3, 500]), 'name': 'a'})
    """
    tensors: dict[str, Tensor] = {}
    return json.dumps(_structure(content, tensors, kept=True)), tensors


def read(structure: str, tensors: Mapping[str, Tensor]) -> Any:
    """The batch that `written` was given.

    Raises:
        ResultsError: a tensor of it is missing.
    """
    try:
        return _content(json.loads(structure), tensors)
    except KeyError as cause:
        raise ResultsError(
            f"a recorded batch has lost its tensor {cause}; copy the recording's whole folder, or record again"
        ) from cause


def digest(content: Any) -> str:
    """A digest of the batch's values, whatever it is stored as, and whatever kind of sequence or mapping holds them.

    Of named tuples, data classes and sparse tensors too, which `written` does not hold.

    Raises:
        Unwritable: something else is in it; the message names its class.
    """
    tensors: dict[str, Tensor] = {}
    structure = json.dumps(_structure(content, tensors, kept=False))
    # tuples and lists alike: PyTorch's own collation makes lists of tuples
    alike = structure.replace('{"list": [', '{"tuple": [').replace(f'{{"{_ENCODING}": {{', '{"dict": {')
    found = hashlib.sha256(alike.encode())
    for name, tensor in tensors.items():
        found.update(f"{name}:{list(tensor.shape)}".encode())
        found.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def _structure(content: Any, tensors: dict[str, Tensor], *, kept: bool) -> Any:
    """See `written`. kept: False where the values are compared and never read back, so that more can be held."""
    if isinstance(content, Tensor):
        return _tensor("tensor", content.detach(), tensors, kept=kept)
    if isinstance(content, np.ndarray) and content.dtype.kind in "biuf" and content.dtype != np.longdouble:
        # a tensor has no negative strides, and no bytes in another order
        own = np.array(content, dtype=content.dtype.newbyteorder("="), order="C")
        return _tensor("array", torch.from_numpy(own), tensors, kept=kept)
    if content is None or isinstance(content, bool | int | float | str):
        return {"value": content}
    if isinstance(content, np.generic):
        return {"value": content.item()}
    if hasattr(content, "_fields") and kept:
        raise Unwritable(
            f"a batch is a named tuple ({type(content).__name__}), which comes back as a plain one; let collate give a "
            "dict, or record with inputs='again'"
        )
    if isinstance(content, tuple | list):
        items = cast("list[Any]", content)
        found = [_structure(item, tensors, kept=kept) for item in items]
        return {type(items).__name__ if type(items) is list else "tuple": found}
    if isinstance(content, Mapping):
        pairs = cast("Mapping[Any, Any]", content)
        if all(isinstance(key, str) for key in pairs):
            kind = _ENCODING if type(pairs).__name__ == _ENCODING else "dict"
            return {kind: {key: _structure(value, tensors, kept=kept) for key, value in pairs.items()}}
    if is_dataclass(content) and not isinstance(content, type) and not kept:
        return {
            "dict": {
                each.name: _structure(getattr(content, each.name), tensors, kept=False) for each in fields(content)
            }
        }
    again = (
        "record with inputs='again' (the batch is then made again from the data set, and compared by its digest), or "
        if kept and is_dataclass(content)
        else ""
    )
    raise Unwritable(
        f"a batch holds a {type(content).__name__}, which has no form in plain files; {again}let collate give tensors, "
        "arrays, numbers and strings, in tuples, lists and dicts"
    )


def _tensor(kind: str, tensor: Tensor, tensors: dict[str, Tensor], *, kept: bool) -> Any:
    if tensor.is_sparse and not kept:
        whole = tensor.coalesce()
        return _structure((list(tensor.shape), whole.indices(), whole.values()), tensors, kept=False)
    plain = tensor.layout is torch.strided and not tensor.is_nested
    if not plain or (kept and tensor.dtype not in _HELD):
        raise Unwritable(
            f"a batch holds a tensor of {tensor.dtype if plain else tensor.layout}, which has no form in plain files; "
            + ("record with inputs='again', or " if kept else "")
            + "let collate give another"
        )
    name, dtype = str(len(tensors)), str(tensor.dtype).removeprefix("torch.")
    tensors[name] = _narrow(tensor.cpu())
    return {kind: name, "dtype": dtype}


def _narrow(tensor: Tensor) -> Tensor:
    if tensor.dtype not in (torch.int16, torch.int32, torch.int64) or not tensor.numel():
        return tensor.clone()
    low, high = (int(end) for end in tensor.aminmax())
    for dtype in _NARROW:
        limits = torch.iinfo(dtype)
        if limits.min <= low and high <= limits.max:
            return tensor.to(dtype, copy=True)
    return tensor.clone()


def _content(structure: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Any:
    (kind, value), *_ = structure.items()
    if kind == "value":
        return value
    if kind in ("tensor", "array"):
        tensor = tensors[value].to(getattr(torch, structure["dtype"]))
        return tensor if kind == "tensor" else tensor.numpy()
    if kind in ("dict", _ENCODING):
        content = {key: _content(each, tensors) for key, each in value.items()}
        return content if kind == "dict" else _encoding(content)
    items = [_content(each, tensors) for each in value]
    return items if kind == "list" else tuple(items)


def _encoding(content: dict[str, Any]) -> Any:
    """A mapping whose entries are attributes too; a dict where transformers is not installed."""
    try:
        from transformers import BatchEncoding
    except ImportError:
        return content
    return BatchEncoding(content)

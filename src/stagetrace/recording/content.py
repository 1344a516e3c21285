"""What a data loader made of some examples, as named tensors and JSON: nothing of it is code."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any, cast, final

import numpy as np
import torch
from torch import Tensor

from stagetrace.errors import DescriptionError

_NARROW = (torch.uint8, torch.int8, torch.int16, torch.int32)
"""What whole numbers are stored as, the first that holds them."""


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
    return json.dumps(_structure(content, tensors)), tensors


def read(structure: str, tensors: Mapping[str, Tensor]) -> Any:
    """The batch that `written` was given."""
    return _content(json.loads(structure), tensors)


def digest(content: Any) -> str:
    """A digest of the batch's values, whatever it is stored as, and whatever kind of sequence or mapping holds them.

    Raises:
        Unwritable: see `written`.
    """
    structure, tensors = written(content)
    # tuples and lists alike: PyTorch's own collation makes lists of tuples
    alike = structure.replace('{"list": [', '{"tuple": [').replace(f'{{"{_ENCODING}": {{', '{"dict": {')
    found = hashlib.sha256(alike.encode())
    for name, tensor in tensors.items():
        found.update(f"{name}:{list(tensor.shape)}".encode())
        found.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def _structure(content: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(content, Tensor):
        return _kept("tensor", content.detach(), tensors)
    if isinstance(content, np.ndarray) and content.dtype.kind in "biuf":
        return _kept("array", torch.from_numpy(content), tensors)
    if content is None or isinstance(content, bool | int | float | str):
        return {"value": content}
    if isinstance(content, np.generic):
        return {"value": content.item()}
    if hasattr(content, "_fields"):
        raise Unwritable(
            f"a batch is a named tuple ({type(content).__name__}), which comes back as a plain one; let collate give a "
            "dict, or record with inputs='again'"
        )
    if isinstance(content, tuple | list):
        items = cast("list[Any]", content)
        return {type(items).__name__ if type(items) is list else "tuple": [_structure(i, tensors) for i in items]}
    if isinstance(content, Mapping):
        pairs = cast("Mapping[Any, Any]", content)
        if all(isinstance(key, str) for key in pairs):
            kind = _ENCODING if type(pairs).__name__ == _ENCODING else "dict"
            return {kind: {key: _structure(value, tensors) for key, value in pairs.items()}}
    raise Unwritable(
        f"a batch holds a {type(content).__name__}, which has no form in plain files; record with inputs='again' (the "
        "batch is then made again from the data set, and compared by its digest), or let collate give tensors"
    )


def _kept(kind: str, tensor: Tensor, tensors: dict[str, Tensor]) -> Any:
    if tensor.layout is not torch.strided or tensor.is_nested:
        raise Unwritable(f"a batch holds a {tensor.layout} tensor; record with inputs='again'")
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

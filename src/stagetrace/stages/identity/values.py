"""What tensors, arrays, pictures, tokenizers and containers are made of."""

import json
from collections.abc import Iterable, Mapping
from pathlib import PurePath
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stagetrace.stages.identity.walk import PLAIN, Walk

_OF_TENSORS = frozenset({"grad", "_is_hf_initialized", "_is_buffer", "persistent"})
"""Attributes that PyTorch and transformers keep on tensors for themselves."""


def add_tensor(walk: Walk, tensor: Tensor) -> None:
    """Kind, type, shape and bytes of a tensor, wherever it lies."""
    kind = type(tensor)
    walk.word("tensor", f"{tensor.dtype} {tensor.layout} {tensor.is_nested or tuple(tensor.shape)}")
    if kind is not Tensor and kind is not torch.nn.Parameter:
        walk.visit("'s class", kind)
    held = {name: value for name, value in sorted(tensor.__dict__.items()) if name not in _OF_TENSORS}
    if held:
        walk.visit("'s attributes", held)
    for part in _dense(walk, tensor.detach()):
        flat = part.cpu().resolve_conj().resolve_neg().contiguous().reshape(-1)
        walk.word("bytes", f"{part.dtype}{tuple(part.shape)}")
        walk.word("bytes", flat.view(torch.uint8).numpy().data if flat.numel() else b"")


def _dense(walk: Walk, tensor: Tensor) -> Iterable[Tensor]:
    """The dense tensors that hold a tensor's numbers."""
    if tensor.is_meta:
        walk.cannot("a tensor without numbers, on the device meta")
        return ()
    if tensor.is_nested:
        return tensor.unbind()
    if tensor.layout is torch.sparse_coo:
        whole = tensor.coalesce()
        return whole.indices(), whole.values()
    if tensor.layout in (torch.sparse_csr, torch.sparse_bsr):
        return tensor.crow_indices(), tensor.col_indices(), tensor.values()
    if tensor.layout in (torch.sparse_csc, torch.sparse_bsc):
        return tensor.ccol_indices(), tensor.row_indices(), tensor.values()
    if tensor.is_quantized:
        return (tensor.dequantize(),)
    return (tensor if tensor.layout is torch.strided else tensor.to_dense(),)


def add_array(walk: Walk, array: Any) -> None:
    """Type, shape and bytes of an array or a scalar of NumPy, whatever its order in memory."""
    values = np.asarray(array)
    walk.word("array", f"{values.dtype.descr if values.dtype.names else values.dtype.str} {values.shape}")
    if type(array) not in (np.ndarray, np.memmap) and not isinstance(array, np.generic):
        walk.visit("'s class", type(array))
        walk.visit("'s attributes", dict(getattr(array, "__dict__", {})))
    if isinstance(array, np.ma.MaskedArray):
        walk.visit(".mask", np.ma.getmaskarray(array))  # pyright: ignore[reportUnknownMemberType,reportUnknownArgumentType]
    if values.dtype.hasobject:
        for place, item in enumerate(values.reshape(-1).tolist()):
            walk.visit(f"[{place}]", item)
    else:
        walk.word("bytes", values.tobytes())


def add_picture(walk: Walk, picture: Any) -> None:
    """Mode, size, palette and pixels of a PIL image; not the file it was read from."""
    walk.word("picture", f"{picture.mode} {picture.size}")
    walk.word("bytes", picture.tobytes())
    walk.visit(".palette", picture.getpalette())


def add_tokenizer(walk: Walk, tokenizer: Any) -> None:
    """A tokenizer of transformers: its serialised form, without the padding and cutting that its last call set."""
    walk.visit("'s class", type(tokenizer))
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        walk.visit("'s vocabulary", sorted(tokenizer.get_vocab().items()))
    else:
        content = json.loads(backend.to_str())
        walk.visit("'s content", {key: value for key, value in content.items() if key not in ("padding", "truncation")})
    for name in ("padding_side", "truncation_side", "model_max_length", "model_input_names", "chat_template"):
        walk.word("attribute", name)
        walk.visit(f".{name}", getattr(tokenizer, name, None))
    walk.visit("'s special tokens", {name: str(token) for name, token in tokenizer.special_tokens_map.items()})


def add_mapping(walk: Walk, mapping: Mapping[Any, Any]) -> None:
    """Keys and values, in their order: a loss may go by it."""
    items = dict.items(mapping) if isinstance(mapping, dict) else mapping.items()
    walk.word("mapping", str(len(mapping)))
    for key, value in items:
        walk.visit("'s key", key)
        walk.visit(f".{key}" if isinstance(key, str) else f"[{_short(key)}]", value)


def add_sequence(walk: Walk, sequence: Any) -> None:
    """The items of a list or a tuple."""
    base: type[Any] = list if isinstance(sequence, list) else tuple
    items: list[Any] = list(base.__iter__(sequence))
    walk.word("sequence", f"{base.__name__} {len(items)}")
    for place, item in enumerate(items):
        written = PLAIN.get(type(item))
        if written is None:
            walk.visit(f"[{place}]", item)
        else:
            walk.word(type(item).__name__, written(item))


def add_set(walk: Walk, items: Iterable[Any]) -> None:
    """The items of a set, in the order of their digests."""
    digests = sorted(apart(walk, item) for item in items)
    walk.word("set", b"".join(digests))


def apart(walk: Walk, item: Any) -> bytes:
    """The digest of an item by itself, so that it does not depend on which of its set came first."""
    written = PLAIN.get(type(item))
    return b"%s %s" % (type(item).__name__.encode(), written(item)) if written else walk.digest(item, "{...}")


def add_path(walk: Walk, path: PurePath) -> None:
    """The path itself; what lies there is not read."""
    walk.word("path", str(path))


def add_text_of(walk: Walk, value: Any) -> None:
    """Values whose text says all: `torch.float32`, `list[int]`."""
    walk.word(type(value).__qualname__, repr(value))


def add_generator(walk: Walk, generator: torch.Generator) -> None:
    """A random generator of PyTorch, by its state."""
    walk.word("generator", str(generator.device))
    walk.visit("'s state", generator.get_state())


def _short(key: object) -> str:
    text = repr(key) if isinstance(key, (int, float, bool, tuple)) else type(key).__name__
    return text if len(text) <= 30 else f"{text[:27]}..."

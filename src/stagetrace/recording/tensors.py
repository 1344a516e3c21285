"""Tensors into a safetensors file without a detour: of many small ones safetensors' own way takes far longer."""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
"""What the format calls a dtype; others are left to the library."""


def write_tensors(path: Path, tensors: Mapping[str, Tensor], said: Mapping[str, str]) -> None:
    """Write tensors, on the CPU and contiguous, by their names, and texts that are said of them.

    The format: the length of a header as eight bytes, the header in JSON, then each tensor's bytes, the widest numbers
    first, so that all of them are aligned. (https://github.com/huggingface/safetensors)

    Raises:
        OSError: the file system refused.
    """
    if sys.byteorder != "little" or any(tensor.dtype not in _NAMES for tensor in tensors.values()):
        try:
            return save_file(dict(tensors), path, dict(said))
        except SafetensorError as cause:
            raise OSError(str(cause)) from cause
    header: dict[str, Any] = {"__metadata__": dict(said)} if said else {}
    start = 0
    ordered = sorted(tensors.items(), key=lambda item: (-item[1].element_size(), item[0]))
    for name, tensor in ordered:
        end = start + tensor.numel() * tensor.element_size()
        header[name] = {"dtype": _NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
        start = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little"))
        file.write(text)
        for _, tensor in ordered:
            file.write(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return None

"""Batches on the model's device, floating-point tensors in its dtype; containers keep their class."""

import copy
import enum
from collections import UserDict
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping
from dataclasses import dataclass
from pathlib import PurePath
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any, TypeVar, final

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence
from torch.utils.data import Dataset

from stagetrace.errors import DataError
from stagetrace.stages.attributes import attributes_of

T = TypeVar("T")
S = TypeVar("S")

_AS_IT_IS = (
    str,
    bytes,
    int,
    float,
    complex,
    type(None),
    type,
    enum.Enum,
    np.ndarray,
    np.generic,
    PurePath,
    nn.Module,
    Dataset,
    torch.Size,
    torch.dtype,
    torch.device,
    torch.Generator,
    ModuleType,
    FunctionType,
    BuiltinFunctionType,
    MethodType,
)
_DEEPEST = 30


def to_device(content: Any, dtype: torch.dtype, device: torch.device, where: str = "the data") -> Any:
    """The batch on the model's device, its floating-point tensors in the model's dtype.

    Mappings, sequences, dataclasses and the attributes of any object are searched; an object is copied where a tensor
    in it changes. Integers keep their type; complex tensors take the precision. Tensors made under
    `torch.inference_mode()` come back as ordinary ones.

    Raises:
        DataError: an object holds tensors for another device or of another dtype, and cannot be copied.
    """
    return _Transfer(dtype, device, where).transferred(content, 0)


@final
@dataclass(frozen=True, eq=False)
class UnderWay:
    """A batch on its way to a GPU, and what it takes to use it there.

    sent: its tensors that are copied from the CPU. arrived: the event after their copies.
    """

    content: Any
    sent: list[Tensor]
    arrived: Any

    def received(self) -> Any:
        """The batch, for what is launched from now on; no processor waits for it."""
        stream = torch.cuda.current_stream(self.sent[0].device) if self.sent else torch.cuda.current_stream()
        stream.wait_event(self.arrived)
        for tensor in self.sent:
            tensor.record_stream(stream)  # its memory was the copying stream's
        return self.content


def send(content: Any, dtype: torch.dtype, device: torch.device, where: str, stream: torch.cuda.Stream) -> UnderWay:
    """Begin to copy a batch to a GPU, through page-locked memory and on a stream of its own; see `to_device`."""
    transfer = _Transfer(dtype, device, where, stream)
    placed = transfer.transferred(content, 0)
    return UnderWay(placed, transfer.sent, stream.record_event())


def one_ahead(begin: Callable[[T], S], items: Iterable[T]) -> Iterator[S]:
    """What `begin` makes of each item, in order; it is called for the next one before the last is handed out.

    Example:
        >>> log = []
        >>> for begun in one_ahead(lambda item: log.append(f"begin {item}") or item, [1, 2]):
        ...     log.append(f"use {begun}")
        >>> log
        ['begin 1', 'begin 2', 'use 1', 'use 2']
    """
    last: list[S] = []
    for item in items:
        last.append(begin(item))
        if len(last) > 1:
            yield last.pop(0)
    yield from last


@final
class _Transfer:
    def __init__(
        self, dtype: torch.dtype, device: torch.device, where: str, stream: torch.cuda.Stream | None = None
    ) -> None:
        self._dtype, self._device, self._where, self._stream = dtype, device, where, stream
        self._done: dict[int, tuple[Any, Any]] = {}
        self.sent = list[Tensor]()

    def transferred(self, content: Any, depth: int) -> Any:
        if isinstance(content, Tensor):
            return self._tensor(content)
        if isinstance(content, _AS_IT_IS) or depth > _DEEPEST:
            return content
        if id(content) not in self._done:
            self._done[id(content)] = content, content  # found again by objects in a reference cycle
            self._done[id(content)] = content, self._inside(content, depth + 1)
        return self._done[id(content)][1]

    def _tensor(self, tensor: Tensor) -> Tensor:
        if tensor.is_inference():
            tensor = tensor.clone()
        dtype = None
        if tensor.is_floating_point():
            dtype = self._dtype
        elif tensor.is_complex() and self._dtype in (torch.float32, torch.float64):
            dtype = self._dtype.to_complex()
        if self._stream is None or tensor.device.type != "cpu":
            # towards the CPU nothing may be read before it is there
            return tensor.to(self._device, dtype, non_blocking=self._device.type != "cpu")
        here = tensor if dtype is None else tensor.to(dtype)
        locked = here if here.is_pinned() else here.pin_memory()
        with torch.cuda.stream(self._stream):
            self.sent.append(locked.to(self._device, non_blocking=True))
        return self.sent[-1]

    def _inside(self, content: Any, depth: int) -> Any:
        if isinstance(content, PackedSequence):
            sizes = content.batch_sizes.clone() if content.batch_sizes.is_inference() else content.batch_sizes
            orders = (content.sorted_indices, content.unsorted_indices)
            return PackedSequence(  # the sizes stay on the CPU
                self._tensor(content.data), sizes, *(None if order is None else self._tensor(order) for order in orders)
            )
        if isinstance(content, Mapping):
            return self._mapping(content, depth)
        if isinstance(content, (tuple, list, set, frozenset)):
            return self._items(content, depth)
        return self._object(content, depth)

    def _mapping(self, content: Mapping[Any, Any], depth: int) -> Any:
        moved = {key: self.transferred(value, depth) for key, value in content.items()}
        if type(content) is dict:
            return moved
        if isinstance(content, UserDict):
            return self._with(content, {"data": moved}) if self._changed(content, moved) else content
        if not self._changed(content, moved):
            return content
        if not isinstance(content, MutableMapping):
            return moved
        try:
            copied = copy.copy(content)
            for key, value in moved.items():
                copied[key] = value
        except Exception as cause:
            raise self._refusal(content, cause) from cause
        return copied

    def _items(self, content: Any, depth: int) -> Any:
        moved = [self.transferred(value, depth) for value in content]
        kind = type(content)
        if kind in (tuple, list):
            return kind(moved)
        if all(one is other for one, other in zip(moved, content, strict=True)):
            return content
        try:
            make = getattr(kind, "_make", kind)  # a named tuple's
            return make(moved)
        except Exception as cause:
            raise self._refusal(content, cause) from cause

    def _object(self, content: Any, depth: int) -> Any:
        held = attributes_of(content)
        moved = {name: self.transferred(value, depth) for name, value in held.items()}
        changed = {name: value for name, value in moved.items() if _differs(value, held[name])}
        return self._with(content, changed) if changed else content

    def _with(self, content: Any, attributes: Mapping[str, Any]) -> Any:
        """A copy with other attributes; frozen dataclasses included."""
        try:
            copied = copy.copy(content)
            for name, value in attributes.items():
                object.__setattr__(copied, name, value)
        except Exception as cause:
            raise self._refusal(content, cause) from cause
        if copied is content:
            raise self._refusal(content, None)
        return copied

    def _changed(self, content: Mapping[Any, Any], moved: Mapping[Any, Any]) -> bool:
        return any(_differs(value, content[key]) for key, value in moved.items())

    def _refusal(self, content: Any, cause: Exception | None) -> DataError:
        why = f" ({type(cause).__name__}: {cause})" if cause is not None else ""
        return DataError(
            f"{self._where}: a batch of class {type(content).__name__} holds tensors of another dtype or device than "
            f"the model's ({self._dtype}, {self._device}) and cannot be copied to change them{why}; "
            "let collate= make them so, or give back a tuple, a dict or a dataclass"
        )


def _differs(value: Any, before: Any) -> bool:
    """Whether a tensor changed; new lists, tuples and dicts of the same things are no change."""
    if value is before:
        return False
    if type(value) is dict and type(before) is dict:
        return any(_differs(item, before[key]) for key, item in value.items())
    if type(value) in (list, tuple) and type(before) is type(value):
        return any(_differs(item, other) for item, other in zip(value, before, strict=True))
    return True

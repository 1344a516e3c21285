"""Which rule an object is looked into by, and what carries no number of a loss."""

import enum
import functools
import logging
import sys
import threading
import types
import typing
import weakref
from functools import lru_cache
from pathlib import PurePath
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from stagetrace.stages.identity.code import add_class, add_function, add_members, instructions
from stagetrace.stages.identity.objects import add_module, add_object, add_referent
from stagetrace.stages.identity.origin import library_of
from stagetrace.stages.identity.values import (
    add_array,
    add_generator,
    add_mapping,
    add_path,
    add_picture,
    add_sequence,
    add_set,
    add_tensor,
    add_text_of,
    add_tokenizer,
)
from stagetrace.stages.identity.walk import Rule, Walk

WITHOUT_NUMBERS = (
    logging.Logger,
    logging.LoggerAdapter,
    logging.Handler,
    type(threading.Lock()),
    type(threading.RLock()),
    threading.Condition,
    threading.Event,
    threading.Semaphore,
)
"""Loggers and locks: of these a digest has the class alone."""

_TEXTS: tuple[Any, ...] = (
    torch.dtype,
    torch.layout,
    torch.memory_format,
    types.GenericAlias,
    types.UnionType,
    typing.TypeVar,
    type(typing.List[int]),  # noqa: UP006  (the class of typing's own)
)
_NAMED = (
    types.BuiltinFunctionType,
    types.WrapperDescriptorType,
    types.MethodWrapperType,
    types.MethodDescriptorType,
    types.ClassMethodDescriptorType,
    types.GetSetDescriptorType,
    types.MemberDescriptorType,
)
_RUNNING = (
    types.GeneratorType,
    types.CoroutineType,
    types.AsyncGeneratorType,
    types.FrameType,
    types.TracebackType,
)


def _nothing(walk: Walk, value: Any) -> None:
    walk.word("without numbers", type(value).__name__)


def _running(walk: Walk, value: Any) -> None:
    walk.cannot(f"a {type(value).__name__}")


def _named(walk: Walk, value: Any) -> None:
    """A function written in C: its name; of the user's own extension also the file."""
    owner = getattr(value, "__objclass__", None) or getattr(value, "__self__", None)
    module = getattr(value, "__module__", None) or getattr(owner, "__module__", None) or "builtins"
    walk.word("named", f"{module} {getattr(value, '__qualname__', value)}" if isinstance(module, str) else repr(module))
    library = library_of(module if isinstance(module, str) else None)
    if library is not None:
        walk.libraries.add(library)
    else:
        file = getattr(sys.modules.get(str(module)), "__file__", None)
        if file is None:
            walk.cannot("a function written in C")
        else:
            with open(file, "rb") as content:
                walk.word("file", content.read())
    if owner is not None and not isinstance(owner, (type, types.ModuleType)):
        walk.visit("'s owner", owner)


def _method(walk: Walk, method: types.MethodType) -> None:
    walk.visit("", method.__func__)
    walk.visit("'s self", method.__self__)


def _partial(walk: Walk, partial: Any) -> None:
    walk.visit("'s func", partial.func)
    walk.visit("'s args", partial.args)
    walk.visit("'s keywords", partial.keywords)
    walk.visit("'s attributes", dict(getattr(partial, "__dict__", {})))


def _cached(walk: Walk, function: Any) -> None:
    walk.visit("", function.__wrapped__)


def _descriptor(walk: Walk, value: Any) -> None:
    walk.visit("", value.__func__)


def _property(walk: Walk, value: property) -> None:
    for each in (value.fget, value.fset, value.fdel):
        walk.visit("", each)


def _cached_property(walk: Walk, value: Any) -> None:
    walk.visit("", value.func)


def _module(walk: Walk, module: types.ModuleType) -> None:
    library = library_of(module.__name__)
    members = vars(module)
    shown = [name for name in members if not name.startswith("__")] if library is None else []
    add_members(walk, module, shown)


def _code(walk: Walk, code: types.CodeType) -> None:
    walk.word("code", instructions(code))


def _cell(walk: Walk, cell: types.CellType) -> None:
    try:
        walk.visit("", cell.cell_contents)
    except ValueError:
        walk.word("empty")


def _member(walk: Walk, member: enum.Enum) -> None:
    walk.visit("'s class", type(member))
    walk.word("member", member._name_ or "")
    walk.visit(".value", member._value_)


def _operation(walk: Walk, operation: Any) -> None:
    walk.word("operation", str(operation))


def _device(walk: Walk, device: torch.device) -> None:
    """Its kind: which of several GPUs computes is no part of a job, and differs between the processes of one."""
    walk.word("device", device.type)


_RULES: tuple[tuple[tuple[type, ...], Rule], ...] = (
    (WITHOUT_NUMBERS, _nothing),
    ((Tensor,), add_tensor),
    ((nn.Module,), add_module),
    ((np.ndarray, np.generic), add_array),
    ((torch.Generator,), add_generator),
    (_RUNNING, _running),
    ((torch.device,), _device),
    (_TEXTS, add_text_of),
    ((type,), add_class),
    ((types.FunctionType,), add_function),
    ((types.MethodType,), _method),
    (_NAMED, _named),
    ((functools.partial, functools.partialmethod), _partial),
    ((functools._lru_cache_wrapper,), _cached),  # pyright: ignore[reportPrivateUsage]
    ((functools.cached_property,), _cached_property),
    ((staticmethod, classmethod), _descriptor),
    ((property,), _property),
    ((types.ModuleType,), _module),
    ((types.CodeType,), _code),
    ((types.CellType,), _cell),
    ((weakref.ref,), add_referent),
    ((PurePath,), add_path),
    ((enum.Enum,), _member),
    ((types.MappingProxyType,), add_mapping),
)
_EXACT: dict[type, Rule] = {
    dict: add_mapping,
    list: add_sequence,
    tuple: add_sequence,
    torch.Size: add_sequence,
    set: add_set,
    frozenset: add_set,
}


@lru_cache(maxsize=4096)
def rule_of(kind: type) -> Rule:
    """The rule for the objects of a class."""
    if kind in _EXACT:
        return _EXACT[kind]
    for kinds, rule in _RULES:
        if issubclass(kind, kinds):
            return rule
    names = {f"{base.__module__}.{base.__name__}" for base in kind.__mro__}
    if kind.__name__ == "cython_function_or_method":
        return _named
    if "PIL.Image.Image" in names:
        return add_picture
    if "transformers.tokenization_utils_base.PreTrainedTokenizerBase" in names:
        return add_tokenizer
    if kind.__module__ in ("torch._ops", "typing"):
        return _operation
    return add_object

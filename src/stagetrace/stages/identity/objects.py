"""What modules and all other objects are made of.

No property and no method of the user's is called, but for a `__getstate__` that the class declares.
"""

import copyreg
import struct
import warnings
import weakref
from collections.abc import Callable, Iterator
from types import FunctionType
from typing import Any

from torch import nn

from stagetrace.stages.attributes import attributes_of
from stagetrace.stages.identity.origin import library_of
from stagetrace.stages.identity.values import add_mapping, add_sequence, add_set
from stagetrace.stages.identity.walk import Walk

_CONTENT: dict[type, Callable[[Walk, Any], None]] = {
    dict: add_mapping,
    list: add_sequence,
    tuple: add_sequence,
    set: add_set,
    frozenset: add_set,
}
_NUMBERS: dict[type, Callable[[Any], str | memoryview]] = {
    str: str.__str__,
    bytes: memoryview,
    int: int.__repr__,
    float: float.__repr__,
    complex: complex.__repr__,
}
_WORD = struct.calcsize("P")
OWN = __name__.partition(".")[0]

_HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")
_FLAGS = (
    "_forward_hooks_with_kwargs",
    "_forward_pre_hooks_with_kwargs",
    "_forward_hooks_always_called",
)

_OF_MODULES = frozenset(
    {
        *_HOOKS,
        *_FLAGS,
        "_parameters",
        "_buffers",
        "_modules",
        "training",  # every model is evaluated in eval mode
        "_non_persistent_buffers_set",
        "_state_dict_hooks",
        "_state_dict_pre_hooks",
        "_load_state_dict_pre_hooks",
        "_load_state_dict_post_hooks",
        "_is_full_backward_hook",
        "_is_hf_initialized",
        "_compiled_call_impl",
        "_flat_weight_refs",
        "generation_config",
        "model_tags",
        "name_or_path",
        "warnings_issued",
    }
)
"""Attributes of modules that are looked at otherwise, or that carry no number of a loss."""

_OF_CONFIGURATIONS = frozenset(
    {"_name_or_path", "name_or_path", "_commit_hash", "transformers_version", "architectures", "dtype", "torch_dtype"}
)
"""What saving and loading write into a configuration of transformers; a parameter's dtype is seen at the parameter."""


def add_module(walk: Walk, module: nn.Module) -> None:
    """A module: class, attributes, hooks, parameters, buffers, and the modules within, in their order."""
    inner = vars(module).get("_modules", {}).get("_orig_mod")
    if type(module).__name__ == "OptimizedModule" and inner is not None:
        walk.visit("", inner)  # what torch.compile wraps; it is evaluated without the compiler
        return
    walk.visit("'s class", type(module))
    state = module.__getstate__() if _declares_state(type(module)) else vars(module)
    if not isinstance(state, dict):
        walk.visit("'s state", state)
        return
    for name in sorted(state.keys() - _OF_MODULES):
        walk.word("attribute", name)
        walk.visit(f".{name}", state[name])
    for place in ("_parameters", "_buffers", "_modules"):
        for name, value in state.get(place, {}).items():
            walk.word(place, name)
            walk.visit(f".{name}", value)
    for place in _HOOKS:
        _add_hooks(walk, state, place)


def _add_hooks(walk: Walk, state: dict[str, Any], place: str) -> None:
    """Hooks in their order; the numbers they are kept under count up over the process."""
    for number, hook in state.get(place, {}).items():
        walk.word(place, repr([number in state.get(flag, {}) for flag in _FLAGS]))
        walk.visit("'s hook", hook)


def add_object(walk: Walk, value: Any) -> None:
    """Any other object: its class, and the state it declares, shows in its attributes, or gives to pickle."""
    kind = type(value)
    walk.visit("'s class", kind)
    if _declares_state(kind):
        try:
            walk.visit("'s state", value.__getstate__())
        except Exception as cause:
            walk.cannot(f"{kind.__name__}, whose __getstate__ raises {type(cause).__name__}")
        return
    content = next((base for base in _CONTENT if isinstance(value, base)), None)
    number = next((base for base in _NUMBERS if isinstance(value, base)), None)
    if content is not None:
        _CONTENT[content](walk, value)
    elif number is not None:
        walk.word(number.__name__, _NUMBERS[number](value))
    elif isinstance(value, Iterator) and library_of(kind.__module__) is not None:
        walk.cannot(_named(kind))
        return
    elif _hides_state(kind):
        _add_reduced(walk, value)
        return
    _add_attributes(walk, value)


def _add_attributes(walk: Walk, value: Any) -> None:
    """What stands in `__dict__` and `__slots__`, by name."""
    held = attributes_of(value)
    configures = any(base.__name__.lower() == "pretrainedconfig" for base in type(value).__mro__)
    for name in sorted(held.keys() - (_OF_CONFIGURATIONS if configures else frozenset())):
        walk.word("attribute", name)
        walk.visit(f".{name}", held[name])


def _add_reduced(walk: Walk, value: Any) -> None:
    """An object written in C: what pickle would write."""
    kind = type(value)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            reduce = copyreg.dispatch_table.get(kind)
            state = value.__reduce_ex__(4) if reduce is None else reduce(value)
    except Exception:
        walk.cannot(_named(kind))
        return
    if isinstance(state, str):
        walk.word("global", f"{getattr(value, '__module__', '')}.{state}")
        return
    made, arguments, *rest = state
    walk.visit("", made)
    walk.visit("'s content", arguments)
    for part in rest:
        walk.visit("'s content", list(part) if isinstance(part, Iterator) else part)


def add_referent(walk: Walk, reference: "weakref.ref[Any]") -> None:
    """What a weak reference leads to."""
    walk.visit("'s referent", reference())


def _declares_state(kind: type) -> bool:
    """Whether a class of the user's own, or of this library, says what its state is."""
    for base in kind.__mro__:
        method = base.__dict__.get("__getstate__")
        if method is not None:
            library = library_of(method.__globals__.get("__name__")) if isinstance(method, FunctionType) else ""
            return library in (None, OWN)
    return False


def _hides_state(kind: type) -> bool:
    """Whether objects of the class hold more than attributes: Python's own rule for what pickle cannot do by itself."""
    slots = sum(
        type(member).__name__ == "member_descriptor" and name not in ("__dict__", "__weakref__")
        for base in kind.__mro__
        for name, member in base.__dict__.items()
    )
    shown = object.__basicsize__ + _WORD * (slots + (kind.__dictoffset__ > 0) + (kind.__weakrefoffset__ > 0))
    return kind.__basicsize__ > shown or kind.__itemsize__ > 0


def _named(kind: type) -> str:
    name = kind.__name__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__name__}"
    return f"{'an' if name[0].lower() in 'aeiou' else 'a'} {name}"

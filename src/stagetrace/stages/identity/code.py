"""What functions and classes are made of: their instructions, and all that these refer to."""

import dis
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from types import CodeType, FunctionType, ModuleType
from typing import Any

from stagetrace.stages.identity.origin import library_of
from stagetrace.stages.identity.walk import Walk

_OF_CLASSES = frozenset(
    {
        "_abc_impl",
        "_autograd_function_id",
        "_backward_cls",
        "_lazy_backward_info",
        "_compiled_autograd_should_lift",
        "_generate_next_value_",
    }
)
"""Attributes that Python and PyTorch keep on classes for themselves; some are counters of the process."""


@dataclass(frozen=True)
class Uses:
    """The names in a function's instructions, those of functions within it included.

    loaded: global names; named: attributes too; imported: (level, module) of the imports in it.
    """

    loaded: tuple[str, ...]
    named: frozenset[str]
    imported: tuple[tuple[int, str], ...]


def add_function(walk: Walk, function: FunctionType) -> None:
    """A function: its instructions, defaults, closure, attributes, and the globals it names."""
    code, own = function.__code__, _is_own(walk, function)
    walk.word("function", instructions(code) if own else f"{function.__globals__.get('__name__')} {code.co_qualname}")
    registry = getattr(function, "registry", None)
    if not own and registry is not None:  # functools.singledispatch: beside it the closure has a cache
        walk.visit(".registry", dict(registry))
        return
    for name, cell in zip(code.co_freevars, function.__closure__ or (), strict=True):
        walk.word("closes over", name)
        try:
            walk.visit(f"'s {name}", cell.cell_contents)
        except ValueError:
            walk.word("empty")
    if not own:
        return
    walk.visit("'s defaults", function.__defaults__)
    walk.visit("'s defaults", function.__kwdefaults__)
    for name, value in sorted(function.__dict__.items()):
        walk.word("attribute", name)
        walk.visit(f".{name}", value)
    uses = uses_of(code)
    for name in uses.loaded:
        walk.word("global", name)
        if name in function.__globals__:
            value = function.__globals__[name]
            if isinstance(value, ModuleType):
                add_members(walk, value, uses.named)
            else:
                walk.visit(f"'s {name}", value)
    for level, name in uses.imported:
        module = sys.modules.get(_absolute(level, name, function))
        walk.word("import", name)
        if module is not None:
            add_members(walk, module, uses.named)


def add_class(walk: Walk, kind: type) -> None:
    """A class: of the user's own all that stands in it; of a package's its name, and what was put in from outside."""
    own = _is_own(walk, kind)
    walk.word("class", kind.__qualname__ if own else f"{kind.__module__}.{kind.__qualname__}")
    generated = "__dataclass_fields__" in kind.__dict__
    for name, value in sorted(kind.__dict__.items()) if own else _put_into(kind):
        if _counts(name, value, generated=generated):
            walk.word("has", name)
            walk.visit(f".{name}", value)
    for base in kind.__mro__[1:]:
        walk.visit("", base)


def add_members(walk: Walk, module: ModuleType, names: Iterable[str], seen: frozenset[int] = frozenset()) -> None:
    """Those of a module's members that have one of the names; of a package's, what was put into it from outside."""
    library = library_of(module.__name__)
    if library is not None:
        walk.libraries.add(library)
        walk.word("module", module.__name__)
    members, seen = vars(module), seen | {id(module)}
    for name in sorted(set(names) & members.keys()):
        value = members[name]
        if isinstance(value, ModuleType):
            walk.word("member", name)
            if id(value) not in seen:
                add_members(walk, value, names, seen)
        elif library is None or _is_foreign(value):
            walk.word("member", name)
            walk.visit(f"'s {name}", value)


@lru_cache(maxsize=4096)
def uses_of(code: CodeType) -> Uses:
    """The names in the instructions of a function and of those within it."""
    loaded, named, imported = set[str](), set[str](), list[tuple[int, str]]()
    for each in _with_inner(code):
        named.update(each.co_names)
        constants: list[Any] = [0, 0]
        for step in dis.get_instructions(each):
            if step.opname in ("LOAD_GLOBAL", "LOAD_NAME"):
                loaded.add(step.argval)
            elif step.opname == "IMPORT_NAME":
                level = constants[-2]
                imported.append((level if isinstance(level, int) else 0, step.argval))
            if "CONST" in step.opname or "SMALL_INT" in step.opname:
                constants.append(step.argval)
    return Uses(tuple(sorted(loaded)), frozenset(named), tuple(imported))


@lru_cache(maxsize=4096)
def instructions(code: CodeType) -> bytes:
    """What a function does, in bytes: neither its file nor its lines."""
    counts = code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount, code.co_flags
    names = code.co_name, code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars
    parts = [repr((counts, names)).encode(), code.co_code, code.co_exceptiontable]
    parts += [_constant(value) for value in code.co_consts]
    return b"".join(f"{len(part)}:".encode() + part for part in parts)


def _constant(value: object) -> bytes:
    if isinstance(value, CodeType):
        return instructions(value)
    if isinstance(value, frozenset):
        return b"{" + b",".join(sorted(_constant(item) for item in value)) + b"}"  # pyright: ignore[reportUnknownVariableType]
    if isinstance(value, tuple):
        return b"(" + b",".join(_constant(item) for item in value) + b")"  # pyright: ignore[reportUnknownVariableType]
    return f"{type(value).__name__} {value!r}".encode("utf-8", "surrogatepass")


def _with_inner(code: CodeType) -> Iterator[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _with_inner(constant)


def _absolute(level: int, name: str, function: FunctionType) -> str:
    if not level:
        return name
    package = str(function.__globals__.get("__package__") or "").split(".")
    return ".".join([*package[: len(package) + 1 - level], *([name] if name else [])])


def _module_of(value: Any) -> str | None:
    """The module in which a function or a class was written; decorators copy `__module__`, globals they cannot."""
    return value.__globals__.get("__name__") if isinstance(value, FunctionType) else value.__module__


def _is_own(walk: Walk, value: FunctionType | type) -> bool:
    """Whether the user wrote it; a package it belongs to is noted."""
    library = library_of(_module_of(value))
    if library is not None:
        walk.libraries.add(library)
    return library is None


def _is_foreign(value: object) -> bool:
    return isinstance(value, FunctionType) and library_of(_module_of(value)) is None


def _put_into(kind: type) -> list[tuple[str, Any]]:
    return [(name, value) for name, value in kind.__dict__.items() if _is_foreign(value)]


def _counts(name: str, value: object, *, generated: bool) -> bool:
    """Whether an attribute of a class can change what its objects do."""
    if name in _OF_CLASSES:
        return False
    if isinstance(value, FunctionType):
        return not (generated and value.__code__.co_filename == "<string>")
    if name == "__slots__":
        return True
    return not (name.startswith("__") and name.endswith("__")) or isinstance(
        value, (property, classmethod, staticmethod)
    )

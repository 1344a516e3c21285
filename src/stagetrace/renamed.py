"""Public names that are gone: each is refused where it is used, with what to write instead.

if not TYPE_CHECKING:
__getattr__ = removed(__name__, {"Largest": "TopRemovals"})    # names of a module

@renamed_attributes(own="trained")                                 # attributes of a class
@renamed_fields(rate="lr")                                         # fields of a dataclass
@renamed_arguments(rate="lr")                                      # arguments of a function
"""

from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any, ParamSpec, TypeVar

from stagetrace.errors import DescriptionError, RemovedNameError

P = ParamSpec("P")
T = TypeVar("T")


def removed(module: str, instead: Mapping[str, str]) -> Callable[[str], Any]:
    """The `__getattr__` of a module that had these names; instead: what to write for each.

    An `ImportError`, since Python drops the message of an `AttributeError` in `from module import name`.
    """

    def __getattr__(name: str) -> Any:
        if name in instead:
            raise RemovedNameError(f"{module}.{name} is gone; write {instead[name]}")
        raise AttributeError(f"module '{module}' has no attribute '{name}'")

    return __getattr__


def renamed_arguments(**names: str) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Refuse old keyword arguments of a function or method: `old="new"`.

    Raises:
        DescriptionError: (from the function) an old name was given.
    """

    def decorate(function: Callable[P, T]) -> Callable[P, T]:
        @wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> T:
            for old in names.keys() & kwargs.keys():
                what = function.__qualname__.removesuffix(".__init__")
                raise DescriptionError(f"{what}({old}=...) is now {what}({names[old]}=...)")
            return function(*args, **kwargs)

        return call

    return decorate


def renamed_fields(**names: str) -> Callable[[type[T]], type[T]]:
    """Refuse old names of a class's fields, as arguments and as attributes: `old="new"`."""

    def decorate(kind: type[T]) -> type[T]:
        kind.__init__ = renamed_arguments(**names)(kind.__init__)
        return renamed_attributes(**names)(kind)

    return decorate


def renamed_attributes(**names: str) -> Callable[[type[T]], type[T]]:
    """Refuse old names of a class's attributes: `old="new"`."""

    def decorate(kind: type[T]) -> type[T]:
        for old, new in names.items():
            setattr(kind, old, property(_refusal(f"{kind.__name__}.{old}", f"{kind.__name__}.{new}")))
        return kind

    return decorate


def _refusal(old: str, new: str) -> Callable[[object], Any]:
    def refuse(self: object) -> Any:
        raise AttributeError(f"{old} is now {new}")

    return refuse

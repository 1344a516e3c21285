"""Hooks that stay behind when the module they are on is copied or saved, and functions of PyTorch that are replaced."""

import functools
from collections.abc import Callable
from typing import Any, final


@final
class Hook:
    """A forward pre-hook of a model that is recorded; copies of the model, and its file, do not have it.

    A loop keeps its best model by `copy.deepcopy(model)`, or saves it by `torch.save(model, path)`. Neither may take
    along what watches the training, so that what stands for a hook there hands the arguments on as they are. It is a
    method of Python's own, `{}.get(module, arguments)`: such a file loads where this library is not installed.
    """

    def __init__(self, hook: Callable[[Any, Any], None]) -> None:
        self._hook = hook

    def __call__(self, module: Any, arguments: Any) -> None:
        self._hook(module, arguments)

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[dict[Any, Any], str]]:
        return getattr, ({}, "get")


def replaced(module: Any, name: str, mine: Callable[..., Any]) -> Callable[[], None]:
    """Put `mine(original, *arguments)` in the place of a function. Returns what puts the function back."""
    original = getattr(module, name)

    @functools.wraps(original)
    def wrapped(*arguments: Any, **named: Any) -> Any:
        return mine(original, *arguments, **named)

    setattr(module, name, wrapped)
    return functools.partial(setattr, module, name, original)

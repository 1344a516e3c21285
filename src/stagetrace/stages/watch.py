"""Watching every operation that PyTorch is asked for."""

from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode

__all__ = ["Watch"]


class _Dispatch:
    """Runs an operation as it is, and shows it.

    A class of its own and no mode: a mode that has this method in its own body is wrapped by PyTorch so that compiled
    code does not enter it, and the wrapper's first call imports the compiler, which takes a second.
    """

    def seen(self, operation: Any, arguments: tuple[Any, ...], options: dict[str, Any], results: Any) -> None:
        """An operation was computed: what it was asked with, and what it gave."""
        raise NotImplementedError

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        options = kwargs or {}
        results = func(*args, **options)
        self.seen(func, args, options, results)
        return results


class Watch(_Dispatch, TorchDispatchMode):
    """A mode under which each operation is seen once it is computed; subclasses give `seen`."""

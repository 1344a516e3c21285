"""With what a run was made."""

import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version


def versions() -> dict[str, str]:
    """The versions of stagetrace, torch, python and pyarrow that are running."""
    packages = {name: _version(name) for name in ("stagetrace", "torch", "pyarrow")}
    return {"python": platform.python_version(), **packages}


def merged(before: Mapping[str, str], now: Mapping[str, str]) -> dict[str, str]:
    """The versions of a run that was continued: where they changed, all of them in order.

    Example:
        >>> merged({"torch": "2.12"}, {"torch": "2.13", "python": "3.12"})
        {'torch': '2.12, 2.13', 'python': '3.12'}
    """
    both = dict(before)
    for name, value in now.items():
        known = before.get(name, "").split(", ") if name in before else []
        both[name] = ", ".join(known if value in known else [*known, value])
    return both


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"

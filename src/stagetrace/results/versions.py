"""With what a run was made."""

import platform
from collections.abc import Mapping
from importlib.metadata import version

from stagetrace.version import __version__


def versions() -> dict[str, str]:
    """The versions of stagetrace, torch, python and pyarrow that are running."""
    packages = {name: version(name) for name in ("torch", "pyarrow")}
    return {"python": platform.python_version(), "stagetrace": __version__, **packages}


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

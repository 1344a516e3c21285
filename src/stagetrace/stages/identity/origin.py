"""Whose code it is: the standard library's, a package's, or the user's own.

The user's own code is identified by what it says. A package's is identified by its name, and the run's record gives the
package's version beside it; for packages not listed here, a digest of their source as well.
"""

import hashlib
import sys
import sysconfig
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from stagetrace.version import __version__

RELEASED = {
    "PIL": "pillow",
    "accelerate": "accelerate",
    "datasets": "datasets",
    "huggingface_hub": "huggingface_hub",
    "numpy": "numpy",
    "pandas": "pandas",
    "peft": "peft",
    "pyarrow": "pyarrow",
    "safetensors": "safetensors",
    "scipy": "scipy",
    "sklearn": "scikit-learn",
    "stagetrace": "stagetrace",
    "tokenizers": "tokenizers",
    "torch": "torch",
    "torchaudio": "torchaudio",
    "torchvision": "torchvision",
    "transformers": "transformers",
    "trl": "trl",
    "typing_extensions": "typing_extensions",
}
"""Packages told apart by their version alone: `{module: distribution}`."""

PYTHON = "python"

_FOLDERS = ("site-packages", "dist-packages")
_LONGEST = 64 * 2**20


@cache
def library_of(module: str | None) -> str | None:
    """The package that a module belongs to: `"python"`, or its top-level name; None for the user's own code."""
    top = (module or "__main__").partition(".")[0]
    if top in ("stagetrace", "torch"):
        return top
    if top == "builtins" or top in sys.builtin_module_names:
        return PYTHON
    place = _place(top)
    if place is None:
        return PYTHON if top in sys.stdlib_module_names else None
    if any(folder in place.parts for folder in _FOLDERS):
        return top
    return PYTHON if top in sys.stdlib_module_names and place.is_relative_to(_standard()) else None


def versions_of(libraries: set[str]) -> dict[str, str]:
    """The versions of some packages, by name."""
    return {name: _version(name) for name in sorted(libraries)}


@cache
def _standard() -> Path:
    return Path(sysconfig.get_path("stdlib")).resolve()


def _place(top: str) -> Path | None:
    """The file or folder of a top-level module."""
    module = sys.modules.get(top)
    file = getattr(module, "__file__", None)
    if isinstance(file, str):
        return Path(file).resolve()
    folders = list(getattr(module, "__path__", []))
    return Path(folders[0]).resolve() if folders else None


@cache
def _version(library: str) -> str:
    if library == PYTHON:
        return f"{sys.version_info.major}.{sys.version_info.minor}"
    if library == "stagetrace":
        return __version__
    if library in RELEASED:
        try:
            return version(RELEASED[library])
        except PackageNotFoundError:
            return str(getattr(sys.modules.get(library), "__version__", "unknown"))
    return f"source {_source(library)}"


def _source(library: str) -> str:
    """A digest of a package's Python files."""
    place = _place(library)
    if place is None:
        return "unknown"
    whole = place.name == "__init__.py"
    files = sorted(place.parent.rglob("*.py")) if whole else [place]
    sha, read = hashlib.sha256(), 0
    for file in files:
        content = file.read_bytes()
        read += len(content)
        sha.update(f"{file.relative_to(place.parent).as_posix()} {len(content)}\n".encode())
        sha.update(content)
        if read > _LONGEST:
            break
    return sha.hexdigest()[:16]

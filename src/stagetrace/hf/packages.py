"""Optional packages, imported when first used."""

from importlib import import_module
from typing import Any

from stagetrace.errors import DescriptionError

INSTALL = {
    "transformers": "pip install 'stagetrace[hf]'",
    "peft": "pip install 'stagetrace[hf]'",
}


def package(name: str) -> Any:
    """The package of this name.

    Raises:
        DescriptionError: it cannot be imported; with what to type.
    """
    try:
        return import_module(name)
    except ImportError as cause:
        raise DescriptionError(
            f"stagetrace.hf needs {name}, which cannot be imported ({cause}); type: {INSTALL[name]}"
        ) from cause


def is_adapted(model: object) -> bool:
    """Whether a model is a `peft.PeftModel`, without importing peft."""
    return any(cls.__module__.split(".")[0] == "peft" and cls.__name__ == "PeftModel" for cls in type(model).__mro__)


def base_of(model: Any) -> Any:
    """The transformers model: that of a `PeftModel`, or the model itself."""
    return model.get_base_model() if is_adapted(model) else model

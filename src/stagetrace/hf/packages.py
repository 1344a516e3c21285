"""Optional packages, imported when first used."""

from collections.abc import Generator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

from stagetrace.errors import DescriptionError

INSTALL = {
    "transformers": "pip install 'stagetrace[hf]'",
    "huggingface_hub": "pip install 'stagetrace[hf]'",
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


def is_of(thing: object, library: str, name: str) -> bool:
    """Whether something is an instance of a library's class, without importing the library."""
    return any(cls.__name__ == name and cls.__module__.split(".")[0] == library for cls in type(thing).__mro__)


def is_adapted(model: object) -> bool:
    """Whether a model is a `peft.PeftModel`."""
    return is_of(model, "peft", "PeftModel")


def base_of(model: Any) -> Any:
    """The transformers model: that of a `PeftModel`, or the model itself."""
    return model.get_base_model() if is_adapted(model) else model


@contextmanager
def quiet() -> Generator[None]:
    """No progress bars and no report of loaded weights: what matters in it is an error here."""
    log = package("transformers").utils.logging
    bars, level = log.is_progress_bar_enabled(), log.get_verbosity()
    log.disable_progress_bar()
    log.set_verbosity_error()
    try:
        yield
    finally:
        log.set_verbosity(level)
        if bars:
            log.enable_progress_bar()

"""What a model's `forward` takes."""

import inspect
from typing import Any

from stagetrace.hf.packages import base_of

ANY = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


def takes(model: Any) -> frozenset[str]:
    """The names of its arguments, those of the base where adapters wrap it; `*args` and `**kwargs` are none."""
    return frozenset(name for name, one in _parameters(model).items() if one.kind not in ANY)


def needs(model: Any) -> tuple[str, ...]:
    """The names of its arguments that have no default."""
    found = _parameters(model).items()
    return tuple(name for name, one in found if one.kind not in ANY and one.default is inspect.Parameter.empty)


def main_of(model: Any) -> str:
    """The feature that an example cannot be without: `input_ids`, `pixel_values`, ..."""
    base = base_of(model)
    name = str(getattr(base, "main_input_name", None) or "input_ids")
    encoder = getattr(base, "encoder", None)
    # an encoder of sounds with a decoder names what it reads after neither kind of features
    return main_of(encoder) if name == "inputs" and hasattr(encoder, "main_input_name") else name


def reads_images(model: Any) -> bool:
    """Whether it is a language model without an encoder that reads images among its tokens: a vision-language model."""
    base = base_of(model)
    writes = type(base).__name__.endswith(("ForConditionalGeneration", "ForCausalLM"))
    alone = not getattr(base.config, "is_encoder_decoder", False)
    return writes and alone and main_of(model) == "input_ids" and "pixel_values" in takes(model)


def text_config_of(model: Any) -> Any:
    """The configuration of what writes: that of the text, where a model reads more than text."""
    config = base_of(model).config
    return getattr(config, "text_config", None) or config


def _parameters(model: Any) -> dict[str, inspect.Parameter]:
    return dict(inspect.signature(base_of(model).forward).parameters)

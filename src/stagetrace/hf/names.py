"""Parameter names without what heads, prefixes and adapters make of them."""

import re
from typing import Any

from torch import nn

from stagetrace.errors import refuse
from stagetrace.hf.packages import base_of, is_adapted

Plain = tuple[str, ...]
"""What a name is matched by: `("base", rest)` below the base model, whatever its prefix, else `("head", name)`."""


def plain_names(model: nn.Module) -> dict[str, Plain]:
    """`{parameter: plain name}`, tied weights under each of their names.

    Modules that adapters have replaced by trained copies (`original_module`) are left out: they have no part in the
    model's output.

    Raises:
        DescriptionError: several adapters are active at once.
    """
    base, adapters = base_of(model), _active(model)
    wrapper = next(name for name, module in model.named_modules() if module is base)
    prefix = str(getattr(base, "base_model_prefix", "") or "")
    below = bool(prefix) and hasattr(base, prefix)  # else the model is a base model itself
    plain: dict[str, Plain] = {}
    for name, _ in model.named_parameters(remove_duplicate=False):
        rest = _without_adapters(name, wrapper, adapters) if adapters else name
        if rest is None:
            continue
        if not prefix or (below and not rest.startswith(prefix + ".")):
            plain[name] = ("head", rest)
        else:
            plain[name] = ("base", rest.removeprefix(prefix + "."))
    return plain


def _active(model: Any) -> list[str]:
    """The names of the adapters in use; none for a model without adapters."""
    if not is_adapted(model):
        return []
    active: list[str] = list(model.active_adapters)
    if len(active) != 1:
        some = ", ".join(active)
        refuse(f"the model has {len(active)} active adapters ({some}); choose one by model.set_adapter(name)")
    return active


def _without_adapters(name: str, wrapper: str, adapters: list[str]) -> str | None:
    """`base_model.model.bert.query.base_layer.weight` -> `bert.query.weight`; None for what is not in use."""
    if ".original_module." in name:
        return None
    name = name.removeprefix(f"{wrapper}.")
    name = re.sub(r"\.base_layer(?=\.|$)", "", name)
    return name.replace(f".modules_to_save.{adapters[0]}.", ".")

"""Parameter names without what heads, prefixes and adapters make of them."""

from collections.abc import Iterable, Mapping
from typing import Any, final

from torch import nn

from stagetrace.hf.adapters import active_adapters, check_adapters, is_adapter, is_copied, is_of_tokens
from stagetrace.hf.packages import base_of
from stagetrace.hf.pieces import rows_of
from stagetrace.objectives.reference import is_of_reference

Plain = tuple[str, ...]
"""What a name is matched by: `("base", rest)` below the base model, whatever its prefix, else `("head", name)`."""


def plain_names(model: nn.Module, called: Mapping[str, str] | None = None) -> dict[str, Plain]:
    """`{parameter: plain name}`, tied weights under each of their names.

    called: what names of adapters are replaced by, `*` for all if not given: another stage may call them otherwise.

    Modules that adapters have replaced by trained copies (`original_module`), adapters that are not in use and the
    reference of an objective are left out: they have no part in the model's output.

    Raises:
        DescriptionError: adapters are not in use as they were trained.
    """
    check_adapters(model)
    return plain_of(model, [name for name, _ in model.named_parameters(remove_duplicate=False)], called)


def plain_of(model: nn.Module, names: Iterable[str], called: Mapping[str, str] | None = None) -> dict[str, Plain]:
    """`{name: plain name}` of these names of tensors, without those that have no part in the model's output."""
    base = base_of(model)
    wrapper = next(name for name, module in model.named_modules() if module is base)
    prefix = str(getattr(base, "base_model_prefix", "") or "")
    below = bool(prefix) and hasattr(base, prefix)  # else the model is a base model itself
    active = active_adapters(model)
    words = dict.fromkeys(active, "*") if called is None else {name: called.get(name, name) for name in active}
    walk = _Walk(dict(model.named_modules(remove_duplicate=False)), words)
    plain: dict[str, Plain] = {}
    for name in names:
        rest = None if is_of_reference(name) else walk.plain(name)
        if rest is None:
            continue
        inside = name.startswith(f"{wrapper}.") if wrapper else True
        rest = rest.removeprefix(f"{wrapper}.") if inside else rest
        if not inside or not prefix or (below and not rest.startswith(prefix + ".")):
            plain[name] = ("head", rest)
        else:
            plain[name] = ("base", rest.removeprefix(prefix + "."))
    return plain


@final
class _Walk:
    """Follows a parameter's name from module to module, and leaves out what is not the model's own."""

    def __init__(self, modules: Mapping[str, nn.Module], active: Mapping[str, str]) -> None:
        self.modules, self.active = modules, active
        layers: list[Any] = [module for module in modules.values() if is_adapter(module)]
        self.known = {name for layer in layers for kind in layer.adapter_layer_names for name in _keys(layer, kind)}

    def plain(self, name: str) -> str | None:
        """`base_model.model.bert.query.base_layer.weight` -> `base_model.model.bert.query.weight`; None: not in use."""
        parts, path, kept = name.split("."), "", list[str]()
        while parts:
            owner, part = self.modules[path], parts.pop(0)
            path = f"{path}.{part}".lstrip(".")
            if is_adapter(owner) and part != "base_layer":
                return self._of_adapter(owner, kept, part, parts)
            if is_copied(owner):
                used: Any = owner  # of several adapters, one at most
                if part == "original_module" or parts[0] not in used.active_adapters:
                    return None
                path = f"{path}.{parts.pop(0)}"
            elif part == "parametrizations" and (rows := rows_of(owner, parts[0])) is not None:
                attribute, number = parts[0], int(parts[1].removeprefix("original"))
                return ".".join([*kept, attribute, *([f"rows from {sum(rows.sizes[:number])}"] if number else [])])
            elif not (is_adapter(owner) or (is_of_tokens(owner) and part == "token_adapter")):
                kept.append(part)
        return ".".join(kept)

    def _of_adapter(self, owner: Any, kept: list[str], part: str, rest: list[str]) -> str | None:
        """An adapter's own parameter, the adapter's name replaced: the next stage may call it otherwise."""
        if rest and rest[0] in self.known and rest[0] not in self.active:
            return None
        below, layer = 0, owner.base_layer
        while is_adapter(layer):  # adapters around adapters: counted from the inside
            below, layer = below + 1, layer.base_layer
        names = [self.active.get(one, one) for one in rest]
        return ".".join([*kept, part, *names, *([f"around {below}"] if below else [])])


def _keys(layer: Any, kind: str) -> list[str]:
    found: Any = getattr(layer, kind, None)
    return [str(name) for name in found.keys()] if hasattr(found, "keys") else []  # noqa: SIM118  (no mapping)

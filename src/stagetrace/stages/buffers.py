"""Buffers in layers with shared parameters: running statistics, which training changes without a gradient.

A batch norm's running mean and variance are part of the function that a stage inherits, but no parameters. Scores treat
them as constants: an example's effect on them is not in its score.
"""

from torch import Tensor, nn

from stagetrace.stages.links.link import Link
from stagetrace.stages.sparse import same_values


def shared_buffers(link: Link, pairs: dict[str, str], model: nn.Module, previous: nn.Module) -> dict[str, str]:
    """`{this stage's floating-point buffer: previous stage's}` in the modules whose parameters are shared.

    pairs: the shared parameters, `{this stage's: previous stage's}`.
    """
    modules = {_module_of(ours): _module_of(theirs) for ours, theirs in pairs.items()}
    ours, theirs = _floating(model), _floating(previous)
    found: dict[str, str] = {}
    for name, buffer in ours.items():
        other = _counterpart(name, modules, link)
        if other in theirs and theirs[other].shape == buffer.shape:
            found[name] = other
    return found


def moved_buffers(link: Link, shared: dict[str, str], model: nn.Module, previous: nn.Module) -> list[str]:
    """The shared buffers that differ although the link froze all that is shared."""
    if not link.keeps_shared:
        return []
    ours, theirs = _floating(model), _floating(previous)
    return [name for name, other in shared.items() if not same_values(ours[name], theirs[other].to(ours[name]))]


def _floating(model: nn.Module) -> dict[str, Tensor]:
    return {name: buffer for name, buffer in model.named_buffers() if buffer.is_floating_point()}


def _module_of(name: str) -> str:
    return name.rpartition(".")[0]


def _counterpart(name: str, modules: dict[str, str], link: Link) -> str:
    """Its name in the previous stage: by the module of a shared parameter, else by the link's own prefixes."""
    module, _, last = name.rpartition(".")
    if module in modules:
        return f"{modules[module]}.{last}".lstrip(".")
    for ours, theirs in link.pairs.items():
        if not ours or name.startswith(f"{ours}."):
            rest = name.removeprefix(ours).lstrip(".")
            return f"{theirs}.{rest}".lstrip(".")
    return ""

"""Which trained parameters belong together: those of a layer, and of layers that share a weight.

A group's gradient is a matrix `[m, n]` for each example. Three kinds of groups cover every trained parameter:

    matrix    a weight of layers of a `Kind`, with the bias beside it; tied weights are one group of several layers
    module    the parameters of any other module, whose gradient is had by running the module once more
    rest      what is used outside a module, or in a way that no hook sees: per-example gradients by autograd
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, final

from torch import nn

from stagetrace.stages.risk import Risk
from stagetrace.stages.space import ParameterSpace
from stagetrace.taps.kinds import Kind, Lookup, kind_of
from stagetrace.taps.layout import Layout

__all__ = ["Group", "How", "Use", "groups_of"]

How = Literal["matrix", "module", "rest"]


@final
@dataclass(frozen=True, eq=False)
class Use:
    """A layer that uses a group's parameters.

    keys: the group's names of the module's own parameters, by their attribute. kind: None where it is run once more.
    """

    module: nn.Module
    place: str
    keys: Mapping[str, str]
    kind: Kind | None = None

    @property
    def looks_up(self) -> bool:
        """Whether the layer is a table of vectors."""
        return isinstance(self.kind, Lookup)


@final
@dataclass(frozen=True, eq=False)
class Group:
    """Parameters whose gradient is one matrix; `why` is said of the rest only."""

    how: How
    layout: Layout
    uses: tuple[Use, ...] = ()
    why: str = ""

    @property
    def names(self) -> tuple[str, ...]:
        return self.layout.names

    @property
    def has_weight(self) -> bool:
        """Whether the weight of its layers is in it, and not their bias alone."""
        return any("weight" in use.keys for use in self.uses)

    @property
    def looks_up(self) -> bool:
        """Whether it is a table of vectors."""
        return any(use.looks_up for use in self.uses)

    @property
    def looks_up_alone(self) -> bool:
        """Whether all its layers do, so that an example's gradient is zero but in a few lines."""
        return bool(self.uses) and all(use.looks_up for use in self.uses)

    @property
    def where(self) -> str:
        """The layers' names, for messages."""
        return " + ".join(dict.fromkeys(use.place or "the model" for use in self.uses)) or ", ".join(self.names)

    def as_rest(self, space: ParameterSpace, why: str) -> "list[Group]":
        """The same parameters, each by itself, as parts of the rest."""
        return [Group("rest", Layout.stacked(space, [name]), (), why) for name in self.names]


def groups_of(risk: Risk) -> list[Group]:
    """The groups of all trained parameters, by the model's structure alone."""
    holders = _holders(risk)
    matrices = list(_matrices(risk.trained, holders))
    covered = {name for group in matrices for name in group.names}
    modules = list(_modules(risk.trained, holders, covered))
    covered |= {name for group in modules for name in group.names}
    left = [name for name in risk.trained.names if name not in covered]
    why = "shared by modules of different kinds"
    return [*matrices, *modules, *(Group("rest", Layout.stacked(risk.trained, [name]), (), why) for name in left)]


_Holder = tuple[nn.Module, str, str]  # module, its name, the attribute


def _holders(risk: Risk) -> dict[str, list[_Holder]]:
    """Each trained parameter's modules; a module that is reachable under two names counts once."""
    model = risk.evaluation.model
    known = {id(parameter): name for name, parameter in model.named_parameters()}
    found: defaultdict[str, list[_Holder]] = defaultdict(list)
    for place, module in model.named_modules():
        for key, parameter in module._parameters.items():  # pyright: ignore[reportPrivateUsage]
            if parameter is not None and known[id(parameter)] in risk.trained.names:
                found[known[id(parameter)]].append((module, place, key))
    return found


def _matrices(space: ParameterSpace, holders: Mapping[str, Sequence[_Holder]]) -> Iterator[Group]:
    shapes = dict(zip(space.names, space.shapes, strict=True))
    taken = set[str]()
    for name in space.names:
        if any(key != "weight" for _, _, key in holders[name]):
            continue
        kinds = [kind_of(module) for module, _, _ in holders[name]]
        if any(kind is None for kind in kinds) or len({kind.transposed for kind in kinds if kind}) > 1:
            continue
        modules = [module for module, _, _ in holders[name]]
        bias = None if any(isinstance(kind, Lookup) for kind in kinds) else _one_bias(modules, holders)
        shape, transposed = shapes[name], bool(kinds[0] and kinds[0].transposed)
        rows, columns = (shape[1], shape[0]) if transposed else (shape[0], shape[1:].numel())
        blocks: dict[str, tuple[int, int, bool]] = {name: (rows, columns, transposed)}
        if bias is not None:
            blocks[bias] = (rows, 1, False)
            taken.add(bias)
        uses = [_use(*holder, kind, blocks, holders) for holder, kind in zip(holders[name], kinds, strict=True)]
        yield Group("matrix", Layout.beside(space, blocks), tuple(uses))
    yield from _lone_biases(space, holders, taken)


def _lone_biases(space: ParameterSpace, holders: Mapping[str, Sequence[_Holder]], taken: set[str]) -> Iterator[Group]:
    """Biases of such layers whose weight is not trained, or is another layer's too."""
    for name in space.names:
        kinds = [kind_of(module) for module, _, key in holders[name] if key == "bias"]
        if name in taken or not kinds or len(kinds) < len(holders[name]) or any(kind is None for kind in kinds):
            continue
        blocks = {name: (dict(zip(space.names, space.sizes, strict=True))[name], 1, False)}
        uses = [_use(*holder, kind, blocks, holders) for holder, kind in zip(holders[name], kinds, strict=True)]
        yield Group("matrix", Layout.beside(space, blocks), tuple(uses))


def _use(
    module: nn.Module, place: str, key: str, kind: Kind | None, blocks: Mapping[str, Any], holders: Mapping[str, Any]
) -> Use:
    del key
    names = {held: name for name in blocks for other, _, held in holders[name] if other is module}
    return Use(module, place, names, kind)


def _one_bias(modules: Sequence[nn.Module], holders: Mapping[str, Sequence[_Holder]]) -> str | None:
    """The trained bias that these layers have in common with no other; None where there is none, or several."""
    biases = {
        name
        for name, held in holders.items()
        for module, _, key in held
        if key == "bias" and any(module is one for one in modules)
    }
    if len(biases) != 1:
        return None
    (bias,) = biases
    inside = all(key == "bias" and any(module is one for one in modules) for module, _, key in holders[bias])
    return bias if inside else None


def _modules(space: ParameterSpace, holders: Mapping[str, Sequence[_Holder]], covered: set[str]) -> Iterator[Group]:
    """The parameters that a single module holds, module by module."""
    by_module: dict[int, list[tuple[str, _Holder]]] = {}
    for name in space.names:
        if name not in covered and len(holders[name]) == 1:
            by_module.setdefault(id(holders[name][0][0]), []).append((name, holders[name][0]))
    for held in by_module.values():
        module, place, _ = held[0][1]
        keys = {holder[2]: name for name, holder in held}
        yield Group("module", Layout.stacked(space, [name for name, _ in held]), (Use(module, place, keys),))

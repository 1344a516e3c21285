"""Which parameters two stages share: names and prefixes as the user gives them, matched parameter by parameter."""

from collections.abc import Container, Mapping, Sequence, Set

from torch import Tensor, nn

from stagetrace.errors import DescriptionError, refuse, some_names
from stagetrace.objectives.reference import is_of_reference
from stagetrace.stages.links.computed import Computed, Origin
from stagetrace.stages.shards import shapes_of, whole_shapes

Shared = str | Sequence[str] | Mapping[str, str] | Mapping[str, Origin]
"""Which parameters are shared: `{this stage's name or prefix: previous stage's}`, or names that agree on both sides.

The empty prefix `""` means every parameter. In place of a previous stage's name may stand what `Computed` one parameter
of this stage from several of the stage before."""


def computed_of(shared: Shared) -> dict[str, Computed]:
    """`{this stage's parameter: what it was computed from}`."""
    given = shared.items() if isinstance(shared, Mapping) else ()
    return {name: origin for name, origin in given if isinstance(origin, Computed)}


def checked_pairs(link: str, shared: Shared) -> dict[str, str]:
    """`{this stage's name or prefix: previous stage's}`, without what was computed; `link` is how messages name it.

    Raises:
        DescriptionError: there is no name, or what is given is no name.
    """
    if not isinstance(shared, (str, Mapping, Sequence, Set)):
        refuse(
            f"{link}: shared must be a name, a list of names or a mapping of names, got {type(shared).__name__}; write "
            f"{link}('embedding') or {link}({{'embedding': 'embedding'}})"
        )
    pairs = {shared: shared} if isinstance(shared, str) else shared
    pairs = dict(pairs) if isinstance(pairs, Mapping) else {name: name for name in pairs}
    if not pairs:
        refuse(f"{link}: no shared parameters given; name at least one, e.g. {link}({{'embedding': 'embedding'}})")
    found: dict[str, str] = {}
    for ours, theirs in pairs.items():
        if not isinstance(ours, str) or not isinstance(theirs, (str, Computed)):
            refuse(f"{link}: shared maps names to names (strings), or to Computed(...), got {ours!r}: {theirs!r}")
        if isinstance(theirs, str):
            found[ours] = theirs
    return found


def canonical_names(model: nn.Module) -> dict[str, str]:
    """Every name of every parameter -> the one name it is known by; tied weights have several names."""
    first: dict[int, str] = {}
    return {
        name: first.setdefault(id(parameter), name)
        for name, parameter in model.named_parameters(remove_duplicate=False)
    }


def origins_of(
    pairs: Mapping[str, str], computed: Mapping[str, Computed], model: nn.Module, previous: nn.Module, where: str
) -> dict[str, Origin]:
    """What each shared parameter of the model came from; a parameter that was computed is in no prefix.

    Raises:
        DescriptionError: as `shared_names`; or what is said to be computed is no parameter, or of none.
    """
    ours, theirs = canonical_names(model), canonical_names(previous)
    found: dict[str, Origin] = {}
    for name, origin in computed.items():
        if name not in ours:
            refuse(f"{where}: there is no parameter '{name}', {origin}; it has {some_names(ours)}")
        unknown = [other for other in origin.of if other not in theirs]
        if unknown:
            refuse(
                f"{where}: '{name}' is {origin}, but the previous stage has no parameter '{unknown[0]}'; it has "
                f"{some_names(theirs)}"
            )
        if ours[name] in found:
            refuse(f"{where}: '{name}' is computed twice under two names of one tied parameter; name it once")
        found[ours[name]] = Computed(tuple(theirs[other] for other in origin.of), origin.function)
    return shared_names(pairs, model, previous, where, without=found) | found


def shared_names(
    pairs: Mapping[str, str], model: nn.Module, previous: nn.Module, where: str, without: Container[str] = ()
) -> dict[str, Origin]:
    """A link's pairs as single parameters: `{this stage's parameter: previous stage's parameter}`, canonical names.

    without: parameters of this stage that no prefix is to match.

    Raises:
        DescriptionError: a name or prefix matches nothing, or a parameter has no counterpart, or two.
    """
    ours, theirs = (
        {name: known for name, known in canonical_names(each).items() if not is_of_reference(name)}
        for each in (model, previous)
    )
    ours = {name: one for name, one in ours.items() if one not in without}
    found: dict[str, Origin] = {}
    for our_prefix, their_prefix in pairs.items():
        matched = _under(our_prefix, ours)
        if not matched:
            refuse(f"{where}: there is no parameter '{our_prefix}' or under it; it has {some_names(ours)}")
        if not _under(their_prefix, theirs):
            refuse(
                f"{where}: the previous stage has no parameter '{their_prefix}' or under it; "
                f"it has {some_names(theirs)}"
            )
        counterparts = {name: _renamed(name, our_prefix, their_prefix) for name in matched}
        missing = [name for name, other in counterparts.items() if other not in theirs]
        if missing:
            refuse(
                f"{where}: {some_names(missing)} under '{our_prefix}' has no counterpart under '{their_prefix}' of the "
                f"previous stage, which has {some_names(_under(their_prefix, theirs))}; "
                "name what is shared more narrowly"
            )
        for name, other in counterparts.items():
            if found.setdefault(ours[name], theirs[other]) != theirs[other]:
                refuse(
                    f"{where}: '{ours[name]}' would be shared with both '{found[ours[name]]}' and '{theirs[other]}' of "
                    "the previous stage; a parameter can start from only one"
                )
    return found


def _under(prefix: str, names: Mapping[str, str]) -> list[str]:
    return [name for name in names if not prefix or name == prefix or name.startswith(prefix + ".")]


def _renamed(name: str, ours: str, theirs: str) -> str:
    rest = name[len(ours) :].lstrip(".")
    return f"{theirs}.{rest}" if theirs and rest else theirs or rest


def check_shapes(model: nn.Module, before: nn.Module, pairs: Mapping[str, Origin], where: str, earlier: str) -> None:
    """Refuse shared parameters of two shapes, and a stage in shards beside one that is whole, or computed there.

    where: how messages name the stage; earlier: the name of the one before.
    """
    if (whole_shapes(model) is None) != (whole_shapes(before) is None):
        refuse(
            f"{where}: the parameters of one of this stage and '{earlier}' lie in shards (DTensor), and those of the "
            "other are whole; shard both models over the same processes, or neither"
        )
    ours, theirs, values = shapes_of(model), shapes_of(before), dict(before.named_parameters())
    for name, other in pairs.items():
        if isinstance(other, Computed):
            _check_computed(name, ours[name], other, values, where, sharded=whole_shapes(model) is not None)
        elif ours[name] != theirs[other]:
            refuse(
                f"{where}: parameter '{name}' has shape {list(ours[name])}, but '{other}' of stage '{earlier}' has "
                f"{list(theirs[other])}; share only what the stages have in common"
            )


def _check_computed(
    name: str, shape: Sequence[int], origin: Computed, theirs: Mapping[str, Tensor], where: str, *, sharded: bool
) -> None:
    if sharded:
        refuse(
            f"{where}: parameter '{name}' is {origin}, which is not made for parameters that lie in shards (DTensor); "
            "give the plain modules with their full states"
        )
    try:
        value = origin.value(theirs)
    except DescriptionError as cause:
        refuse(f"{where}: parameter '{name}' is {cause}")
    if list(value.shape) != list(shape):
        refuse(
            f"{where}: parameter '{name}' has shape {list(shape)}, but as {origin} it is computed as one of "
            f"{list(value.shape)}; have the function return the parameter as the stage started from it"
        )

"""How a stage started from the one before it, and which of its parameters came from there."""

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from numbers import Real
from typing import Literal, final

from torch import nn

from stagetrace.errors import refuse, some_names

Shared = str | Sequence[str] | Mapping[str, str]
"""Which parameters are shared: `{this stage's name or prefix: previous stage's}`, or names that agree on both sides.

The empty prefix `""` means every parameter."""


def _check_shared(link: str, shared: Shared) -> dict[str, str]:
    if not isinstance(shared, (str, Mapping, Sequence, Set)):
        refuse(
            f"{link}: shared must be a name, a list of names or a mapping of names, got {type(shared).__name__}; write "
            f"{link}('embedding') or {link}({{'embedding': 'embedding'}})"
        )
    pairs = {shared: shared} if isinstance(shared, str) else shared
    pairs = dict(pairs) if isinstance(pairs, Mapping) else {name: name for name in pairs}
    if not pairs:
        refuse(f"{link}: no shared parameters given; name at least one, e.g. {link}({{'embedding': 'embedding'}})")
    for ours, theirs in pairs.items():
        if not isinstance(ours, str) or not isinstance(theirs, str):
            refuse(f"{link}: shared maps names to names (strings), got {ours!r}: {theirs!r}")
    return pairs


@final
@dataclass(frozen=True)
class Frozen:
    """The shared parameters were kept as the previous stage left them (Chen et al. 2020, case 1, eq. 2).

    Also what LoRA and linear probes are: the base is shared and kept, the adapter or the head is trained.

    Example:
        >>> Frozen("embedding").pairs
        {'embedding': 'embedding'}
    """

    shared: Shared

    def __post_init__(self) -> None:
        _check_shared("Frozen", self.shared)

    @property
    def pairs(self) -> dict[str, str]:
        """`{this stage's name or prefix: previous stage's}`."""
        return _check_shared("Frozen", self.shared)


@final
@dataclass(frozen=True)
class Proximal:
    """The shared parameters W were trained further, held near where they started (case 2, eq. 12):

    `argmin alpha * |W - W_previous|^2 + F(W, Theta)`, without a half, so the penalty's curvature is `2 alpha`.

    Args:
        shared: which parameters are shared.
        alpha: strength of the pull, in loss units per squared parameter unit; 0.01 is the paper's. "auto" estimates it
            from the stationarity of eq. 12: `alpha = -<dF/dW, W - W_previous> / (2 |W - W_previous|^2)`.

    Example:
        >>> Proximal({"encoder": "bert"}, alpha=0.1).pairs
        {'encoder': 'bert'}
    """

    shared: Shared
    alpha: float | Literal["auto"] = 0.01

    def __post_init__(self) -> None:
        _check_shared("Proximal", self.shared)
        number = isinstance(self.alpha, Real) and not isinstance(self.alpha, bool)
        if self.alpha != "auto" and not (number and 0 < float(self.alpha) < float("inf")):
            refuse(f"Proximal(alpha=...) must be a positive number or 'auto', got {self.alpha!r}; the paper uses 0.01")

    @property
    def pairs(self) -> dict[str, str]:
        """`{this stage's name or prefix: previous stage's}`."""
        return _check_shared("Proximal", self.shared)


Link = Frozen | Proximal


def canonical_names(model: nn.Module) -> dict[str, str]:
    """Every name of every parameter -> the one name it is known by; tied weights have several names."""
    first: dict[int, str] = {}
    return {
        name: first.setdefault(id(parameter), name)
        for name, parameter in model.named_parameters(remove_duplicate=False)
    }


def shared_names(link: Link, model: nn.Module, previous: nn.Module, where: str) -> dict[str, str]:
    """The link's pairs as single parameters: `{this stage's parameter: previous stage's parameter}`, canonical names.

    Raises:
        DescriptionError: a name or prefix matches nothing, or a parameter has no counterpart, or two.
    """
    ours, theirs = canonical_names(model), canonical_names(previous)
    found: dict[str, str] = {}
    for our_prefix, their_prefix in link.pairs.items():
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

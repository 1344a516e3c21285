"""Which layers of a model are tapped, and the check that the gradients from the taps are those of autograd."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import inf
from typing import final

import torch
from torch import Tensor

from stagetrace.errors import StagetraceError, first_line
from stagetrace.stages.data import Batch
from stagetrace.stages.risk import Risk
from stagetrace.taps.gradients import Sums, wide
from stagetrace.taps.groups import Group, Use, groups_of
from stagetrace.taps.record import Axis, Record, Taps, axes_of, shapes_in
from stagetrace.taps.rest import Rest

__all__ = ["DISAGREEMENT", "PROBED", "SIZES", "Tapped", "probe_of", "tap"]

PROBED = 3
"""Examples that the gradients are compared on."""

SIZES = (2, 3, 5)
"""Batches in which a layer's output is looked at, to see where it has the examples."""

DISAGREEMENT = 1e-3
"""How far a group's gradient may be from autograd's, relatively, in single precision and finer."""


@final
@dataclass(frozen=True, eq=False)
class Tapped:
    """A model with its taps, and how each trained parameter's per-example gradient is had.

    groups: of all trained parameters. agreement: the largest relative distance of a tapped group's gradients from
    autograd's on the probe.
    """

    risk: Risk
    taps: Taps
    groups: tuple[Group, ...]
    agreement: float

    @property
    def tapped(self) -> tuple[Group, ...]:
        return tuple(group for group in self.groups if group.how != "rest")

    @property
    def rest(self) -> tuple[Group, ...]:
        """What is left to autograd."""
        return tuple(group for group in self.groups if group.how == "rest")

    def sums(self, record: Record) -> list[Sums]:
        """A batch's per-example gradients, group by group, in the order of `tapped`."""
        owners = record.owners()
        return [Sums(group, record, owners) for group in self.tapped]


def tap(risk: Risk) -> Tapped:
    """Tap a model's layers, and compare the per-example gradients with autograd's on a few examples.

    Where they differ, or a layer cannot be tapped, its parameters are part of the rest, with the reason.

    Raises:
        DataError: an example cannot be evaluated.
    """
    exact, probe, groups = risk.exact, probe_of(risk), groups_of(risk)  # rounded products would hide small differences
    axes = _axes(exact, groups)
    why = _changed(exact, groups, axes, probe)
    if why:  # an axis of examples was added where the model cannot take it
        groups = _without(risk, groups, why, lambda use: axes[use.place] in ("one", "none"))
        why = _changed(exact, groups, axes, probe)
        groups = _without(risk, groups, why, lambda use: bool(why))
    kept, worst = _agreeing(exact, groups, axes, probe)
    return Tapped(risk, _taps(risk, kept, axes, watched=True), tuple(kept), worst)


def _without(risk: Risk, groups: Sequence[Group], why: str, untapped: Callable[[Use], bool]) -> list[Group]:
    """The groups, those with such a layer as parts of the rest."""
    split = ([group] if not any(map(untapped, group.uses)) else group.as_rest(risk.trained, why) for group in groups)
    return [each for parts in split for each in parts]


def probe_of(risk: Risk, count: int = PROBED) -> Batch:
    """A few examples, spread through the data set; some twice where there are fewer."""
    total = len(risk.examples)
    spread = sorted(position * total // count for position in range(count))
    return next(iter(risk.read([spread])))


def _axes(risk: Risk, groups: Sequence[Group]) -> dict[str, Axis]:
    modules = {use.place: use.module for group in groups for use in group.uses}
    batches = [probe_of(risk, size) for size in SIZES]
    return axes_of([(len(batch), shapes_in(risk, modules, batch)) for batch in batches])


def _taps(risk: Risk, groups: Sequence[Group], axes: Mapping[str, Axis], *, watched: bool = False) -> Taps:
    """watched: whether it is looked out for parameters that are used outside of their layers, too."""
    modules = {use.place: use.module for group in groups for use in group.uses}
    held: dict[str, dict[str, str]] = {}
    for use in (use for group in groups if watched for use in group.uses):
        held.setdefault(use.place, {}).update(use.keys)
    return Taps(risk, modules, {place: axes[place] for place in modules}, held)


def _changed(risk: Risk, groups: Sequence[Group], axes: Mapping[str, Axis], probe: Batch) -> str:
    """Why a pass with taps gives other outputs than one without; empty where it does not."""
    with torch.no_grad():
        plain = risk.outputs(risk.trained_values, risk.inherited_values, probe)
    try:
        tapped = _taps(risk, groups, axes).record(probe).outputs
    except StagetraceError:
        raise
    except Exception as cause:  # whatever a model's own code says of an output with an axis more
        return f"the model cannot be evaluated with taps ({first_line(cause)})"
    same = tapped.shape == plain.shape and _close(tapped.detach(), plain, plain)
    return "" if same else "taps behind the layers change the outputs"


def _agreeing(risk: Risk, groups: Sequence[Group], axes: dict[str, Axis], probe: Batch) -> tuple[list[Group], float]:
    """The groups, those whose gradients are not autograd's on the probe as parts of the rest; `axes` are corrected."""
    kept, worst = list[Group](), 0.0
    along, expected = _expected(risk, groups, probe)
    scale = max((float(each.norm()) for each in expected.values()), default=0.0)
    allowed = max(DISAGREEMENT, torch.finfo(risk.trained.dtype).eps ** 0.5)
    together = _together(risk, groups, axes, probe, along)
    for group in groups:
        if group.how == "rest":
            kept.append(group)
            continue
        right = expected[group.names]
        size = max(float(right.norm()), 1e-6 * scale)
        found = together.get(group.names)
        gap, why = (_distance(found, right, size), "") if found is not None else (inf, "")
        if not gap <= allowed:  # by itself, which says why, or works where another layer did not
            gap, why = _gap(risk, group, axes, probe, along, right, size)
        if not gap <= allowed:  # a list of tokens may look like one of examples: these are told apart
            elsewhere: dict[str, Axis] = {use.place: "elsewhere" for use in group.uses}
            again, _ = _gap(risk, group, axes | elsewhere, probe, along, right, size)
            if again <= allowed:
                gap = again
                axes.update(elsewhere)
        kept += [group] if gap <= allowed else group.as_rest(risk.trained, why)
        worst = max(worst, gap) if gap <= allowed else worst
    left = [name for group in kept if group.how == "rest" for name in group.names]
    if left:  # whether autograd can differentiate them with all else constant: not in a model that checkpoints
        Rest(risk, left).whole(probe, along)
    return kept, worst


def _together(
    risk: Risk, groups: Sequence[Group], axes: Mapping[str, Axis], probe: Batch, along: Tensor
) -> dict[tuple[str, ...], Tensor]:
    """Every tapped group's gradients from one pass, by its names; none where that does not work for all."""
    try:
        return _gradients(risk, [group for group in groups if group.how != "rest"], axes, probe, along)
    except Exception:  # whatever a layer says of being run once more: by itself it is named
        return {}


def _gap(
    risk: Risk, group: Group, axes: Mapping[str, Axis], probe: Batch, along: Tensor, right: Tensor, size: float
) -> tuple[float, str]:
    """The relative distance of a group's gradients from the right ones, and what it would mean; infinite: none."""
    try:
        found = _gradients(risk, [group], axes, probe, along)[group.names]
    except Exception as cause:  # whatever a layer says of being run once more
        return inf, f"a tap behind {group.where} does not work ({first_line(cause)})"
    return _distance(found, right, size), f"used outside {group.where}, or in a way that a tap behind it does not see"


def _distance(found: Tensor, right: Tensor, size: float) -> float:
    gap = float((found - right).detach().norm())
    return gap / size if size else gap


def _gradients(
    risk: Risk, groups: Sequence[Group], axes: Mapping[str, Axis], probe: Batch, along: Tensor
) -> dict[tuple[str, ...], Tensor]:
    """`[examples, size]` of each group from the taps, by its names."""
    record = _taps(risk, groups, axes).record(probe)
    gradients, owners = record.gradients(along), record.owners()
    found = dict[tuple[str, ...], Tensor]()
    for group in groups:
        parts = [matrices for _, matrices in Sums(group, record, owners).matrices(gradients)]
        together = torch.cat(parts).permute(1, 2, 0)
        vectors = together.new_zeros(risk.trained.size, len(probe))
        group.layout.scatter(together, vectors)
        found[group.names] = _own(vectors, group)
    return found


def _expected(risk: Risk, groups: Sequence[Group], probe: Batch) -> tuple[Tensor, dict[tuple[str, ...], Tensor]]:
    """A random direction of the outputs, and each group's gradients along it by autograd."""
    names = list(risk.trained.names)
    with torch.no_grad():
        outputs = risk.outputs(risk.trained_values, risk.inherited_values, probe)
    along = torch.randn(outputs.shape, generator=torch.Generator().manual_seed(1)).to(outputs)
    found = Rest(risk, names).whole(probe, along)
    vectors = wide(risk.trained.zeros(len(probe)))
    where, start = risk.trained.slices(), 0
    for name in names:
        size = where[name].stop - where[name].start
        vectors[where[name]] = found[:, start : start + size].mT
        start += size
    return along, {group.names: _own(vectors, group) for group in groups}


def _own(vectors: Tensor, group: Group) -> Tensor:
    return torch.cat([vectors[piece.start : piece.start + piece.size] for piece in group.layout.pieces])


def _close(one: Tensor, other: Tensor, scale: Tensor) -> bool:
    allowed = torch.finfo(scale.dtype).eps ** 0.5 * float(scale.abs().max()) if scale.numel() else 0.0
    return bool(((one - other).abs() <= allowed).all())

"""Per-example gradients of a group of parameters, from what its layers were given and the gradients in what they gave.

All are computed in single precision at least, whatever the model's precision.
"""

import warnings
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any, final

import torch
from torch import Tensor
from torch.func import functional_call, vjp, vmap

from stagetrace.errors import DifferentiationError
from stagetrace.taps.groups import Group, Use
from stagetrace.taps.kinds import Lookup
from stagetrace.taps.record import Call, Record

__all__ = ["BYTES", "Sums", "pulled", "wide"]

BYTES = 2**27
"""Bytes of per-example gradients that are formed at once."""


def wide(tensor: Tensor) -> Tensor:
    """In single precision at least."""
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


@final
class Sums:
    """A group's gradients in a batch, for one backward pass after another: what does not change is prepared once.

    A matrix group's gradient of example i is `sum_t outs[i, t] rows[i, t]'` over its positions t, summed over the
    calls of its layers. Rows of a bias are one; those of a lookup are numbers of lines.

    Args:
        owners: of each call's rows, as `Record.owners` gives them, by place.
    """

    def __init__(self, group: Group, record: Record, owners: dict[str, list[Tensor | None]]) -> None:
        self.group, self.size, self._owners = group, record.size, owners
        self._like = wide(record.outputs.detach().flatten()[:0])
        self._calls = [(use, call, number) for use in group.uses for number, call in enumerate(record.calls[use.place])]
        self._read = [self._read_off(*each) for each in self._calls] if group.how == "matrix" else []

    @property
    def bytes(self) -> int:
        """What it holds of the forward pass."""
        given = [leaf for _, call, _ in self._calls for leaf in (*call.given, *call.named.values())]
        return sum(leaf.nbytes for leaf in (*given, *self._read, *self._rows) if isinstance(leaf, Tensor))

    def rows(self) -> list[Tensor]:
        """The rows of every call: `[batch, positions, n]`, or whole numbers `[batch, positions]`."""
        return self._rows

    @cached_property
    def _rows(self) -> list[Tensor]:
        return [self._with_ones(use, read) for (use, _, _), read in zip(self._calls, self._read, strict=False)]

    def read(self) -> list[tuple[Use, Tensor]]:
        """The same of every call without the ones of a bias, and the layer that was called."""
        return [(use, read) for (use, _, _), read in zip(self._calls, self._read, strict=True)]

    def outs(self, gradients: dict[str, list[Tensor]]) -> list[Tensor]:
        """The gradients in every call's output: `[batch, positions, m]`; 0 at the padding of a table."""
        found: list[Tensor] = []
        for (use, call, number), rows in zip(self._calls, self._read, strict=True):
            assert use.kind is not None
            given, owner = wide(gradients[use.place][number]), self._owners[use.place][number]
            outs = self._by_example(_units(use, given, "outputs", owner), owner, use)
            padding = getattr(use.module, "padding_idx", None)
            if isinstance(use.kind, Lookup) and padding is not None:
                outs = outs.masked_fill((rows == padding).unsqueeze(-1), 0.0)
            found.append(outs)
            del call
        return found

    def matrices(self, gradients: dict[str, list[Tensor]]) -> Iterator[tuple[slice, Tensor]]:
        """The gradients `[examples, m, n]`, some examples at a time, and which these are."""
        m, n = self.group.layout.shape
        step = max(1, BYTES // (m * n * 4))
        if self.group.how == "module":
            whole = self._by_module(gradients)
            yield from ((part, whole[part]) for part in _parts(self.size, step))
            return
        outs = self.outs(gradients)
        for part in _parts(self.size, step):
            yield part, self.products([each[part] for each in self._rows], [each[part] for each in outs])

    def products(self, rows: Sequence[Tensor], outs: Sequence[Tensor]) -> Tensor:
        """`sum_t outs rows'` of some examples `[examples, m, n]`, over all calls."""
        m = self.group.layout.shape[0]
        total: Tensor | None = None
        for given, gave in zip(rows, outs, strict=True):
            if given.is_floating_point():
                product = gave.mT @ given.to(gave.dtype)
                total = product if total is None else total + product
        for given, gave in zip(rows, outs, strict=True):
            if not given.is_floating_point():
                if total is None:
                    total = gave.new_zeros(len(gave), m, gave.shape[-1])
                lines = given + m * torch.arange(len(given), device=given.device).unsqueeze(1)
                total.view(-1, gave.shape[-1]).index_add_(0, lines.reshape(-1), gave.reshape(-1, gave.shape[-1]))
        return total if total is not None else self._nothing()

    def _nothing(self) -> Tensor:
        """Of a layer that was not called."""
        return self._like.new_zeros(self.size, *self.group.layout.shape)

    def _read_off(self, use: Use, call: Call, number: int) -> Tensor:
        assert use.kind is not None
        owner = self._owners[use.place][number]
        given = self._by_example(_units(use, call.input, "rows", owner), owner, use)
        return given if isinstance(use.kind, Lookup) else wide(given)

    def _with_ones(self, use: Use, given: Tensor) -> Tensor:
        if isinstance(use.kind, Lookup):
            return given
        ones = given.new_full((*given.shape[:-1], 1), float("bias" in use.keys))
        has_bias = self.group.layout.shape[1] > (given.shape[-1] if self.group.has_weight else 0)
        blocks = ([given] if self.group.has_weight else []) + ([ones] if has_bias else [])
        return torch.cat(blocks, dim=-1) if blocks[1:] else blocks[0]

    def _by_example(self, units: Tensor, owner: Tensor | None, use: Use) -> Tensor:
        """Units `[units, positions, ...]` as `[batch, positions, ...]`, those of one example after another."""
        if owner is None:
            return units
        del use
        owner = _of_units(owner, len(units))
        live = owner >= 0
        mine, whose = units[live], owner[live]
        order = torch.argsort(whose, stable=True)
        mine, whose = mine[order], whose[order]
        counts = torch.bincount(whose, minlength=self.size)
        place = torch.arange(len(whose), device=whose.device) - (counts.cumsum(0) - counts)[whose]
        most = int(counts.max()) if len(whose) else 0
        found = units.new_zeros(self.size, max(1, most), *units.shape[1:])
        found[whose, place] = mine
        return found.flatten(1, 2)

    def _by_module(self, gradients: dict[str, list[Tensor]]) -> Tensor:
        """`[batch, size, 1]`: the pullback of each unit's output gradient through the module alone, run once more."""
        total: Tensor | None = None
        for use, call, number in self._calls:
            owner = self._owners[use.place][number]
            each = wide(pulled(use, call, gradients[use.place][number]))
            if owner is not None:
                whose = _of_units(owner, len(each))
                each = each.new_zeros(self.size, each.shape[1]).index_add(0, whose.clamp_min(0), each)
            total = each if total is None else total + each
        return self._nothing() if total is None else total.unsqueeze(-1)


def pulled(use: Use, call: Call, gradient: Tensor) -> Tensor:
    """Each unit's gradient in the module's own parameters `[units, size]`, in the order of the use's keys."""
    values = {key: use.module.get_parameter(key).detach() for key in use.keys}
    units = len(gradient)
    leaves = [*call.given, *call.named.values()]
    mapped = [isinstance(leaf, Tensor) and leaf.ndim > 0 and len(leaf) == units for leaf in leaves]

    def one(out: Tensor, *single: Tensor) -> Tensor:
        tensors = iter(single)
        arguments = [
            next(tensors).unsqueeze(0) if is_mapped else leaf for leaf, is_mapped in zip(leaves, mapped, strict=True)
        ]
        given, named = tuple(arguments[: len(call.given)]), arguments[len(call.given) :]

        def run(parameters: dict[str, Tensor]) -> Any:
            return functional_call(use.module, parameters, given, dict(zip(call.named, named, strict=True)))

        _, back, *_ = vjp(run, values)
        (found,) = back(out.unsqueeze(0))
        return torch.cat([found[key].reshape(-1) for key in values])

    with warnings.catch_warnings():  # an operation that cannot be batched (EmbeddingBag) is looped over
        warnings.filterwarnings("ignore", message="There is a performance drop", category=UserWarning)
        return vmap(one)(gradient, *(leaf for leaf, is_mapped in zip(leaves, mapped, strict=True) if is_mapped))


def _units(use: Use, given: Tensor, what: str, owner: Tensor | None) -> Tensor:
    """What a kind reads off as `[units, positions, ...]`; scattered rows are a unit each, if they stand alone."""
    assert use.kind is not None
    found = use.kind.rows(use.module, given) if what == "rows" else use.kind.outputs(given)
    return found.flatten(0, 1).unsqueeze(1) if owner is not None and use.kind.splits_positions else found


def _of_units(owner: Tensor, units: int) -> Tensor:
    """The owner of each unit: of each row, or of all rows of an entry of the first axis."""
    flat = owner.reshape(-1)
    if len(flat) == units:
        return flat
    each = owner.reshape(units, -1)
    most = each.amax(1)
    if bool(((each >= 0) & (each != most.unsqueeze(1))).any()):
        raise DifferentiationError("an entry of the first axis of a layer's output belongs to several examples")
    return most


def _parts(size: int, step: int) -> Iterator[slice]:
    return (slice(first, min(first + step, size)) for first in range(0, size, step))

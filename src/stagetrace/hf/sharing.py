"""Which parameters a model has from the one before it, found by name and shape."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn

from stagetrace.errors import refuse
from stagetrace.hf.merged import merged_layers
from stagetrace.hf.names import Plain, plain_names
from stagetrace.results.table import ShownAsTable, Table
from stagetrace.stages.links.names import canonical_names
from stagetrace.stages.stage import Stage


@final
@dataclass(frozen=True, eq=False)
class Shared(ShownAsTable, Mapping[str, str]):
    """`{this model's parameter: the previous model's}`, and what has no counterpart.

    As a mapping it can stand in `Frozen(...)` or `Proximal(...)`; printed, it is a table by module.

    pairs: the shared parameters.
    kept: those of this model whose values are still the previous model's; the other shared ones moved.
    new: parameters of this model without a counterpart.
    left: parameters of the previous model without one.
    reshaped: `{this model's parameter: (its shape, that of the previous model's of the same name)}`, not shared; they
        are in `new` and in `left` too.
    """

    pairs: Mapping[str, str]
    kept: frozenset[str]
    new: tuple[str, ...]
    left: tuple[str, ...]
    reshaped: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]]
    _ours: Mapping[str, tuple[str, int]]
    _theirs: Mapping[str, tuple[str, int]]

    def __getitem__(self, name: str) -> str:
        return self.pairs[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.pairs)

    def __len__(self) -> int:
        return len(self.pairs)

    @property
    def moved(self) -> tuple[str, ...]:
        """The shared parameters whose values are no longer the previous model's."""
        return tuple(name for name in self.pairs if name not in self.kept)

    def table(self) -> Table:
        """A row for each module and each fate of its parameters: how many numbers they are, in how many tensors."""
        rows = [
            *_rows("shared, kept", [self._ours[name] for name in self.pairs if name in self.kept]),
            *_rows("shared, moved", [self._ours[name] for name in self.moved]),
            *_rows("new here", [self._ours[name] for name in self.new]),
            *_rows("left behind", [self._theirs[name] for name in self.left]),
        ]
        notes = [
            f"{name} is not shared: its shape is {list(ours)}, before it was {list(theirs)}"
            for name, (ours, theirs) in self.reshaped.items()
        ]
        title, heads = "parameters of this stage and the one before", ("what", "module", "parameters", "tensors")
        return Table(title, heads, tuple(rows), "\n".join(notes), words=frozenset(heads[:2]))

    __repr__ = ShownAsTable.__str__


def shared(model: nn.Module | Stage, previous: nn.Module | Stage) -> Shared:
    """Match the parameters of two models by name: of equal name and shape are shared.

    A name is what is left of it without the prefix of the base model (`bert.`, `model.`) and without what adapters add;
    weights that were trained beside adapters (`modules_to_save`) count as the module they replace. Tied weights are one
    parameter.

    Raises:
        DescriptionError: no parameter is shared, or weights have the previous model's adapters merged into them.
    """
    for each in (model, previous):
        if not isinstance(each, (nn.Module, Stage)):
            refuse(
                f"hf.shared takes two models or stages, got {each!r}; load the models first, e.g. by "
                "transformers.AutoModel.from_pretrained(folder)"
            )
    ours_model, theirs_model = (each.model if isinstance(each, Stage) else each for each in (model, previous))
    _check_apart(ours_model, theirs_model)
    ours, theirs = plain_names(ours_model), plain_names(theirs_model)
    our_one, their_one = canonical_names(ours_model), canonical_names(theirs_model)
    our_values, their_values = dict(ours_model.named_parameters()), dict(theirs_model.named_parameters())
    by_plain = {plain: their_one[name] for name, plain in theirs.items()}
    pairs: dict[str, str] = {}
    reshaped: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {}
    for name, plain in ours.items():
        here, there = our_one[name], by_plain.get(plain)
        if there is None or here in pairs:
            continue
        if our_values[here].shape == their_values[there].shape:
            pairs[here] = there
        else:
            reshaped[here] = (tuple(our_values[here].shape), tuple(their_values[there].shape))
    if not pairs:
        refuse(
            f"no parameter of {type(ours_model).__name__} has the name and shape of one of "
            f"{type(theirs_model).__name__}{_example(reshaped)}; name the shared ones by link=Frozen({{...}}) "
            "or link=Proximal({...})"
        )
    return Shared(
        pairs,
        frozenset(name for name, other in pairs.items() if _equal(our_values[name], their_values[other])),
        tuple(name for name in dict.fromkeys(our_one[n] for n in ours) if name not in pairs),
        tuple(name for name in dict.fromkeys(their_one[n] for n in theirs) if name not in set(pairs.values())),
        {name: shapes for name, shapes in reshaped.items() if name not in pairs},
        _described(ours, our_values),
        _described(theirs, their_values),
    )


def _check_apart(model: nn.Module, previous: nn.Module) -> None:
    merged = merged_layers(model, previous)
    if merged:
        refuse(
            f"the adapters of the stage before are merged into '{next(iter(merged))}'; give after= and no link=, "
            "hf.stage(..., after=before), which takes them apart again: the names of the model change with that"
        )


def _equal(ours: Tensor, theirs: Tensor) -> bool:
    return torch.equal(ours.detach(), theirs.detach().to(ours))


def _described(plain: Mapping[str, Plain], values: Mapping[str, Tensor]) -> dict[str, tuple[str, int]]:
    """Parameter -> its module (two levels of its name at most) and its number of entries."""
    return {name: (_module(plain[name][-1]), p.numel()) for name, p in values.items() if name in plain}


def _module(name: str) -> str:
    """`encoder.layer.0.output.weight` -> `encoder.layer`."""
    return ".".join(name.split(".")[:-1][:2]) or name


def _rows(what: str, entries: list[tuple[str, int]]) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    for module in dict.fromkeys(module for module, _ in entries):
        sizes = [size for name, size in entries if name == module]
        rows.append((what, module, f"{sum(sizes):,}", f"{len(sizes):,}"))
    return rows


def _example(reshaped: Mapping[str, Any]) -> str:
    if not reshaped:
        return ""
    name, (ours, theirs) = next(iter(reshaped.items()))
    return f" ('{name}' has shape {list(ours)}, before it had {list(theirs)})"

"""Which parameters a model has from the one before it, found by name and shape."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn

from stagetrace.errors import refuse
from stagetrace.hf.chained import words_of
from stagetrace.hf.merged import kept_merged, merged_layers, merged_weights
from stagetrace.hf.names import Plain, plain_names
from stagetrace.hf.quantised import check_traceable, is_quantised
from stagetrace.results.table import ShownAsTable, Table
from stagetrace.stages.links.computed import Origin, sources_of
from stagetrace.stages.links.names import canonical_names
from stagetrace.stages.stage import Stage


@final
@dataclass(frozen=True, eq=False)
class Shared(ShownAsTable, Mapping[str, Origin]):
    """`{this model's parameter: the previous model's}`, and what has no counterpart.

    In place of a name stands a function of several where adapters were merged.

    As a mapping it can stand in `Frozen(...)` or `Proximal(...)`; printed, it is a table by module.

    pairs: the shared parameters.
    kept: those of this model whose values are still the previous model's; the other shared ones moved.
    new: parameters of this model without a counterpart.
    left: parameters of the previous model without one.
    reshaped: `{this model's parameter: (its shape, that of the previous model's of the same name)}`, not shared; they
        are in `new` and in `left` too.
    """

    pairs: Mapping[str, Origin]
    kept: frozenset[str]
    new: tuple[str, ...]
    left: tuple[str, ...]
    reshaped: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]]
    _ours: Mapping[str, tuple[str, int]]
    _theirs: Mapping[str, tuple[str, int]]

    def __getitem__(self, name: str) -> Origin:
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
            *self._shared_rows("kept", [name for name in self.pairs if name in self.kept]),
            *self._shared_rows("moved", self.moved),
            *_rows("new here", [self._ours[name] for name in self.new]),
            *_rows("left behind", [self._theirs[name] for name in self.left]),
        ]
        notes = [
            f"{name} is not shared: its shape is {list(ours)}, before it was {list(theirs)}"
            for name, (ours, theirs) in self.reshaped.items()
        ]
        title, heads = "parameters of this stage and the one before", ("what", "module", "parameters", "tensors")
        return Table(title, heads, tuple(rows), "\n".join(notes), words=frozenset(heads[:2]))

    def _shared_rows(self, fate: str, names: Sequence[str]) -> list[tuple[str, ...]]:
        merged = [name for name in names if not isinstance(self.pairs[name], str)]
        return [
            *_rows(f"shared, {fate}", [self._ours[name] for name in names if name not in merged]),
            *_rows(f"merged, {fate}", [self._ours[name] for name in merged]),
        ]

    __repr__ = ShownAsTable.__str__


def shared(model: nn.Module | Stage, previous: nn.Module | Stage) -> Shared:
    """Match the parameters of two models by name: of equal name and shape are shared.

    A name is what is left of it without the prefix of the base model (`bert.`, `model.`) and without what adapters add;
    weights that were trained beside adapters (`modules_to_save`) count as the module they replace. Tied weights are one
    parameter. Of two adapters those are one that have the same values, or else the same name. A weight that the
    previous model's adapters were merged into is shared as a function of them and of their base
    (`stagetrace.stages.links.Computed`).

    Raises:
        DescriptionError: no parameter is shared; or it is not clear whether adapters were merged, or which is which.
    """
    for each in (model, previous):
        if not isinstance(each, (nn.Module, Stage)):
            refuse(
                f"hf.shared takes two models or stages, got {each!r}; load the models first, e.g. by "
                "transformers.AutoModel.from_pretrained(folder)"
            )
    ours_model, theirs_model = (each.model if isinstance(each, Stage) else each for each in (model, previous))
    check_traceable(ours_model, theirs_model)
    computed = merged_weights(ours_model, theirs_model)
    our_words, their_words = words_of(ours_model, theirs_model, merged_layers(computed))
    ours, theirs = plain_names(ours_model, our_words), plain_names(theirs_model, their_words)
    our_one, their_one = canonical_names(ours_model), canonical_names(theirs_model)
    our_values, their_values = dict(ours_model.named_parameters()), dict(theirs_model.named_parameters())
    by_plain = {plain: their_one[name] for name, plain in theirs.items()}
    pairs: dict[str, Origin] = dict(computed)
    reshaped: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {}
    for name, plain in ours.items():
        here, there = our_one[name], by_plain.get(plain)
        if there is None or here in pairs or is_quantised(our_values[here]):
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
    used = sources_of(pairs.values())
    return Shared(
        pairs,
        frozenset(name for name, other in pairs.items() if _kept(our_values[name], other, their_values)),
        tuple(name for name in dict.fromkeys(our_one[n] for n in ours) if name not in pairs),
        tuple(name for name in dict.fromkeys(their_one[n] for n in theirs) if name not in used),
        {name: shapes for name, shapes in reshaped.items() if name not in pairs},
        _described(ours, our_values),
        _described(theirs, their_values),
    )


def _kept(ours: Tensor, origin: Origin, theirs: Mapping[str, Tensor]) -> bool:
    if isinstance(origin, str):
        return torch.equal(ours.detach(), theirs[origin].detach().to(ours))
    return kept_merged(ours, origin, theirs)


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

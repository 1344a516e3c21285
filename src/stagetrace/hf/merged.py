"""Adapters that were merged into the weights before the next stage: each merged weight as a function of its parts."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, final

import torch
from torch import Tensor, nn

from stagetrace.errors import refuse
from stagetrace.hf.adapters import is_adapter
from stagetrace.hf.merging import Merge
from stagetrace.hf.names import Plain, plain_names
from stagetrace.stages.links.computed import Computed
from stagetrace.stages.links.names import canonical_names

MERGED, NEITHER = 0.75, 0.25
"""How far along the way from base to merged weights a model must be to count as merged; below the second it is not."""


@final
@dataclass(frozen=True, eq=False)
class Part:
    """A weight or bias of this model whose counterpart has adapters around it in the stage before.

    name: this model's parameter. base: the previous stage's, below the adapters. path: of the adapters' layer.
    """

    name: str
    base: str
    path: str
    layer: nn.Module
    kind: Literal["weight", "bias"]

    def computed(self, previous: nn.Module) -> Computed:
        """The merged weight, of the previous stage's parameters."""
        one = canonical_names(previous)
        merge = Merge(self.layer, self.kind, f"'{self.path}'")
        return Computed(tuple(one[f"{self.path}.{name}"] for name in merge.names), merge)


def merged_weights(model: nn.Module, previous: nn.Module) -> dict[str, Computed]:
    """`{parameter of this model: what it was merged from}`, where the previous stage's adapters are in the weights.

    Whether they are is asked of all layers together: with W the weights of this model, W0 those of the base and D what
    the adapters add, `<W - W0, D> / |D|^2` is 1 where W is the merged model, also where it was trained further in
    directions of its own, and 0 where adapters were left out.

    Raises:
        DescriptionError: the weights are between both; or what merging computed is not known.
    """
    ours, theirs = dict(model.named_parameters()), dict(previous.named_parameters())
    parts = [part for part in _parts(model, previous) if part.name in ours]
    if all(torch.equal(ours[part.name].detach(), _like(theirs[part.base], ours[part.name])) for part in parts):
        return {}  # of no model with adapters, or with them left out
    computed = {part.name: part.computed(previous) for part in parts}
    along = size = 0.0
    for part in parts:
        base = theirs[part.base].detach().double()
        update = computed[part.name].value(theirs).double() - base
        along += float(((ours[part.name].detach().double() - base) * update).sum())
        size += float(update.square().sum())
    share = along / size if size else 0.0
    if share < NEITHER:
        return {}
    if share < MERGED:
        refuse(
            f"'{parts[0].name}' and the other weights that had adapters in the stage before lie between those with and "
            f"without the adapters merged in ({share:.0%} of the way): adapters that were merged by a smaller weight, "
            "or along with others. Say what this stage started from by link=Proximal({**hf.shared(...), name: "
            "Computed(names, function)}) of stagetrace.stages.links, or merge by model.merge_and_unload()"
        )
    return {part.name: each for part in parts if _is_merged(part, each := computed[part.name], ours, theirs)}


def kept_merged(value: Tensor, origin: Computed, previous: Mapping[str, Tensor]) -> bool:
    """Whether a merged weight was not trained further.

    One that requires no gradient was not if it is the merged one to rounding. Of one that does, it must be as near as
    some merge leaves it: the very numbers that peft's comes to in the types that are used for it, or less than one
    rounding away on average. Sixteen bits round more coarsely than a training may move weights.
    """
    if not value.requires_grad:
        return origin.agrees(value, previous)
    merge = origin.function
    parts = [previous[name] for name in origin.of]
    if isinstance(merge, Merge) and any(
        torch.equal(value.detach(), merge.by_peft(parts, dtype).to(value)) for dtype in (None, torch.float32)
    ):
        return True
    eps, exact = torch.finfo(value.dtype).eps, origin.value(previous).double()
    away = float((value.detach().double() - exact).square().mean().sqrt())
    return eps < 1e-6 and away <= eps * float(exact.square().mean().sqrt())


def merged_layers(origins: Mapping[str, Any]) -> set[str]:
    """The previous stage's parameters that went into merged weights."""
    return {name for origin in origins.values() if isinstance(origin, Computed) for name in origin.of}


def _parts(model: nn.Module, previous: nn.Module) -> Iterator[Part]:
    ours = {plain: name for name, plain in plain_names(model).items()}
    theirs, one = plain_names(previous), canonical_names(previous)
    outer, our_one, found = "", canonical_names(model), set[str]()
    for path, layer in previous.named_modules():
        if not is_adapter(layer) or (outer and path.startswith(f"{outer}.base_layer")):
            continue
        outer, inner = path, f"{path}.base_layer"
        while is_adapter(previous.get_submodule(inner)):
            inner += ".base_layer"
        _check_parts(model, previous, inner, ours, theirs)
        for kind in ("weight", "bias"):
            here = ours.get(theirs.get(f"{inner}.{kind}", ()))
            if here is None or our_one[here] in found:
                continue
            found.add(our_one[here])
            yield Part(our_one[here], one[f"{inner}.{kind}"], path, layer, kind)


def _check_parts(
    model: nn.Module, previous: nn.Module, inner: str, ours: Mapping[Plain, str], theirs: Mapping[str, Plain]
) -> None:
    """Refuse changed parameters of layers that have others than a weight and a bias below their adapters."""
    for name, parameter in previous.get_submodule(inner).named_parameters():
        here = ours.get(theirs.get(f"{inner}.{name}", ()))
        if name in ("weight", "bias") or here is None:
            continue
        if not torch.equal(model.get_parameter(here).detach(), _like(parameter, model.get_parameter(here))):
            refuse(
                f"'{here}' changed since the stage before, which has adapters around it; what merging makes of such a "
                f"layer ({type(previous.get_submodule(inner)).__name__}, '{name}') is not known here: describe the "
                "stage before by its merged folder (model.merge_and_unload().save_pretrained(folder))"
            )


def _is_merged(part: Part, origin: Computed, ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> bool:
    """Whether this part was merged, as the others were: not a bias that merging leaves alone, nor a layer left out."""
    base = theirs[part.base]
    if not torch.equal(ours[part.name].detach(), _like(base, ours[part.name])):
        return part.kind == "weight" or not torch.equal(origin.value(theirs).to(base), base.detach())
    return part.kind == "weight" and origin.agrees(ours[part.name], theirs)


def _like(value: Tensor, other: Tensor) -> Tensor:
    return value.detach().to(other)

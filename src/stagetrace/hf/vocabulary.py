"""Vocabularies that grew between two stages: the rows that both have are shared, the others are new."""

import copy
from typing import Any

from torch import nn

from stagetrace.hf.names import Plain, plain_names
from stagetrace.hf.packages import base_of
from stagetrace.hf.pieces import cut, rows_of


def with_common_rows(model: nn.Module, previous: nn.Module) -> nn.Module:
    """The model with its vocabulary's tables cut where the previous stage's end, so that the common rows can be shared.

    Only tables of tokens are cut (input and output embeddings, and biases of one number per token), which
    `resize_token_embeddings` extends at their end. Rows that are still the previous stage's, beside added rows, require
    no gradient. The model itself is not changed: where there is something to cut, a copy is that shares its memory.
    """
    sizes = {plain: sizes for plain, sizes in _pieces(previous).items() if sum(sizes) > 0}
    cuts: dict[str, list[int]] = {}
    ours = dict(model.named_parameters())
    for name, plain in plain_names(model).items():
        before = sizes.get(plain)
        if before is None or name not in ours or name not in _tables(model):
            continue
        grown = len(ours[name]) - sum(before)
        if grown >= 0 and len(before) + bool(grown) > 1:
            cuts[name] = [*before, *([grown] if grown else [])]
    if not cuts:
        return model
    copied = copy.deepcopy(model, {id(parameter): parameter for parameter in model.parameters()})
    for name, pieces in cuts.items():
        cut(copied, ours[name], pieces, [False] * len(pieces))
    return copied


def _pieces(model: nn.Module) -> dict[Plain, list[int]]:
    """Plain name of each of the vocabulary's tables -> the rows of its pieces: one number where it is whole."""
    found: dict[Plain, list[int]] = {}
    names = plain_names(model)
    for name, parameter in model.named_parameters(remove_duplicate=False):
        path, _, last = name.rpartition(".")
        if ".parametrizations." in f".{name}" and last == "original0":
            owner, _, attribute = path.rpartition(".parametrizations.")
            rows = rows_of(model.get_submodule(owner), attribute)
            if rows is not None:
                found[names[name]] = list(rows.sizes)
        elif name in names and name in _tables(model):
            found[names[name]] = [len(parameter)]
    return found


def _tables(model: Any) -> frozenset[str]:
    """Parameters with a row (or a number) per token of the vocabulary, under all their names."""
    base, modules = base_of(model), list[Any]()
    for name in ("get_input_embeddings", "get_output_embeddings") if hasattr(base, "config") else ():
        try:
            modules.append(getattr(base, name)())
        except NotImplementedError:  # a model of two towers, such as CLIP, has no table that is its own
            continue
    of_tokens = {id(p) for module in modules if module is not None for p in module.parameters()}
    return frozenset(name for name, p in model.named_parameters(remove_duplicate=False) if id(p) in of_tokens)

"""Rows that pack several documents, which transformers keeps apart by their positions.

Where `position_ids` start again and there is no attention mask and no cache, the attention of a causal model in
transformers does not cross from one document into the next (`masking_utils.find_packed_sequence_indices`). A mask of
ones, added for the padding's sake, would switch that off. So such rows get no mask. What pads them has position 0: each
such token is a document of its own, and in a causal model nothing before it sees it.
"""

import copy
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import nn

from stagetrace.errors import refuse
from stagetrace.hf.columns import LENGTHS, MASK, POSITIONS, TOKENISED
from stagetrace.hf.packages import base_of, quiet
from stagetrace.hf.rows import is_sequence, present, some_values
from stagetrace.hf.signature import takes
from stagetrace.hf.task import Task
from stagetrace.hf.tokenizing import size_of


def starts_again(positions: Sequence[int]) -> bool:
    """Whether positions do not rise by one throughout: the row packs several documents."""
    values = [int(position) for position in positions]
    return any(after != before + 1 for before, after in pairwise(values))


def positions_of(lengths: Sequence[int]) -> list[int]:
    """`[2, 3]` -> `[0, 1, 0, 1, 2]`."""
    return [position for length in lengths for position in range(int(length))]


def is_packed(row: Mapping[str, Any], task: Task, where: str) -> bool:
    """Whether a row's positions, not a mask, say which of its tokens see which.

    Raises:
        DescriptionError: positions that start again for a model that is not causal.
    """
    names = present(row)
    if TOKENISED not in names or MASK in names or not {POSITIONS, LENGTHS} & set(names):
        return False
    if task is Task.CAUSAL:
        return True
    if LENGTHS in names or starts_again(row[POSITIONS]):
        refuse(
            f"{where}: rows that pack several documents ('{POSITIONS}' start again) are read for causal language "
            "models only; write a row for each document"
        )
    return False


def packs(row: Mapping[str, Any], rows: Any) -> bool:
    """Whether the first row, or one of those at hand, packs several documents."""
    if row.get(LENGTHS) is not None:
        return any(len(lengths) > 1 for lengths in [row[LENGTHS], *some_values(rows, LENGTHS)] if is_sequence(lengths))
    return any(
        starts_again(values) for values in [row[POSITIONS], *some_values(rows, POSITIONS)] if is_sequence(values)
    )


def check_apart(model: Any, where: str) -> None:
    """Refuse packed rows for a model in which a document sees those before it, by one forward pass of two rows.

    Args:
        model: in eval mode, adapters included.

    Raises:
        DescriptionError: see above.
    """
    base = base_of(model)
    size = size_of(base.config)
    if size is None:
        return
    rows = torch.tensor([[first % size, 1 % size, 2 % size, 3 % size] for first in (0, size - 1)])
    device = next(model.parameters()).device
    inputs = {TOKENISED: rows.to(device)}
    if POSITIONS in takes(model):
        inputs[POSITIONS] = torch.tensor([[0, 1, 0, 1]] * 2, device=device)
    with torch.no_grad(), quiet():
        one, other = model(**inputs).logits[:, -2:]
    if float((one - other).abs().max()) > 16 * torch.finfo(one.dtype).eps * float(one.abs().max()):
        refuse(
            f"{where}: the rows pack several documents, and transformers lets documents of a packed row see each other "
            f"in this model ({type(base).__name__}); write one document a row"
        )


def without_cache(model: Any) -> Any:
    """The model with `config.use_cache` off, as trainers set it: with a cache, documents would not be kept apart.

    A copy that shares its parameters, where the setting is on: a model given is never changed.
    """
    if not _uses_cache(model):
        return model
    shared: dict[int, Any] = {id(parameter): parameter for parameter in model.parameters()}
    copied = copy.deepcopy(model, shared)
    for module in (copied, *copied.modules()):
        if getattr(getattr(module, "config", None), "use_cache", False):
            module.config.use_cache = False
    return copied


def check_cache(model: nn.Module, where: str) -> None:
    """Refuse packed rows for a model whose cache is on.

    Raises:
        DescriptionError: see above.
    """
    if _uses_cache(model):
        refuse(
            f"{where}: these rows pack several documents and the stage's rows do not; write a row for each document, "
            "or set model.config.use_cache = False before the stage is made, so that documents are kept apart"
        )


def _uses_cache(model: Any) -> bool:
    return bool(getattr(base_of(model).config, "use_cache", False))

"""What a tokenizer must be able to do, how long a text may be, and how many tokens there are."""

from typing import Any

import torch
from torch import nn

from stagetrace.errors import refuse
from stagetrace.hf.columns import MASK, Columns
from stagetrace.hf.packages import base_of
from stagetrace.hf.signature import takes, text_config_of
from stagetrace.hf.task import Task


def check_tokenizer(tokenizer: Any, task: Task, columns: Columns, where: str) -> None:
    """Refuse a tokenizer that lacks what the task needs.

    Raises:
        DescriptionError: no mask token for masks; not a fast one where words or completions are to be found.
    """
    if task is Task.MASKED and columns.label is None and getattr(tokenizer, "mask_token_id", None) is None:
        refuse(f"{where}: masked language modelling needs a tokenizer with a mask token; this one has none")
    if columns.tokenised or getattr(tokenizer, "is_fast", False):
        return
    what, by = (
        ("labels of words go to tokens", "word_ids()") if task is Task.TOKENS else ("a completion is found", "offsets")
    )
    if task is Task.TOKENS or columns.completes:
        refuse(
            f"{where}: {what} by {by}, which fast tokenizers alone have; load the tokenizer by AutoTokenizer, or "
            "tokenise yourself into input_ids and labels"
        )


POSITIONED = ("position_embeddings", "position_embedding", "wpe", "embed_positions", "positions_embed")
"""Names of tables with a vector for each position, beyond which a model cannot read."""


def longest_of(tokenizer: Any, model: Any) -> int | None:
    """The most tokens that the tokenizer and the model's table of positions allow.

    Where neither says anything (a tokenizer may say 1e30), what the configuration says; None where it says nothing.
    """
    said = getattr(tokenizer, "model_max_length", None)
    said = said if isinstance(said, int) and 0 < said < 10**9 else None
    found = [length for length in (said, most_of(model)) if length is not None]
    return min(found) if found else _stated(base_of(model).config)


def most_of(model: Any) -> int | None:
    """How many tokens the model's table of positions has a vector for; None for positions without a table.

    RoBERTa and its kin begin behind the padding token, OPT and its kin at an offset: those vectors stand for no token.
    """
    base = base_of(model)
    stated = _stated(base.config)
    found: list[int] = []
    for name, module in base.named_modules():
        if name.rpartition(".")[2] not in POSITIONED or not isinstance(module, nn.Embedding):
            continue
        offset: Any = getattr(module, "offset", 0)
        before = int(offset) if isinstance(offset, int) and offset else 0
        if module.padding_idx is not None and not before:
            before = module.padding_idx + 1
        if stated is None or module.num_embeddings >= stated:  # a table of an image's places is shorter
            found.append(module.num_embeddings - before)
    return min(found, default=None)


def check_length(length: int | None, tokenizer: Any, model: Any, columns: Columns, where: str) -> None:
    """Refuse a `max_length` that the model cannot read, or that leaves no token of a text.

    Raises:
        DescriptionError: with both numbers.
    """
    if length is None:
        return
    most = most_of(model)
    if most is not None and length > most:
        refuse(f"{where}: max_length={length} is more than the {most} tokens that the model has positions for")
    added = getattr(tokenizer, "num_special_tokens_to_add", None)
    own = added(pair=len(columns.texts) == 2 and not columns.completes) if callable(added) else 0
    if isinstance(own, int) and length <= own:
        refuse(
            f"{where}: max_length={length} leaves no token of a text, as the tokenizer adds {own} of its own; "
            f"give at least {own + 1}"
        )


def _stated(config: Any) -> int | None:
    """`config.max_position_embeddings`, where it is a length (XLNet says -1)."""
    stated = getattr(config, "max_position_embeddings", None)
    return stated if isinstance(stated, int) and stated > 0 else None


def size_of(config: Any) -> int | None:
    """The size of a model's vocabulary, where its configuration has one."""
    size = getattr(config, "vocab_size", None)
    return size if isinstance(size, int) and size > 0 else None


def check_looks_back_only(base: Any, where: str) -> None:
    """Refuse a model whose answer for the next token depends on that token: that was not its training loss.

    Raises:
        DescriptionError: see above.
    """
    size = min(text_config_of(base).vocab_size, 4)
    one, other = (_logits(base, [0, 1, last])[:2] for last in (2 % size, size - 1))
    if _differ(one, other):
        refuse(
            f"{where}: {type(base).__name__} sees the tokens it is to predict, so the loss of a causal language "
            "model is not what it was trained on; set config.is_decoder = True if it was, else give objective="
        )


def padding_side_notices(base: Any, tokenizer: Any, where: str) -> list[str]:
    """A sentence where training padded on the left and the model's positions count the padding."""
    if getattr(tokenizer, "padding_side", "right") != "left" or MASK not in takes(base):
        return []
    last = 1 % text_config_of(base).vocab_size
    if not _differ(_logits(base, [last, 0])[-1], _logits(base, [0, last, 0], [0, 1, 1])[-1]):
        return []
    return [
        f"{where}: the tokenizer pads on the left, which shifts this model's positions, so that a loss in training "
        "hung on the batch; examples are read here as they are without padding"
    ]


def _logits(base: Any, tokens: list[int], mask: list[int] | None = None) -> torch.Tensor:
    """`[length, vocabulary]` for one sentence."""
    device = next(base.parameters()).device
    taken = MASK in takes(base)  # without a mask, transformers warns of what it takes for padding
    masked = {MASK: torch.tensor([mask or [1] * len(tokens)], device=device)} if taken else {}
    with torch.no_grad():
        return base(input_ids=torch.tensor([tokens], device=device), **masked).logits[0]


def _differ(one: torch.Tensor, other: torch.Tensor) -> bool:
    return float((one - other).abs().max()) > 16 * torch.finfo(one.dtype).eps * float(one.abs().max())

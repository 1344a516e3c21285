"""A language model that is a table, pairs of completions, and the two stages SFT and DPO over them, at their minima."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SIZE, DECAY, ALPHA, BETA = 4, 0.05, 0.02, 0.4


class Table(nn.Module):
    """Logits of the next token by the last one: every loss below is convex in it."""

    def __init__(self, values: Tensor | None = None) -> None:
        super().__init__()
        self.table = nn.Embedding(SIZE, SIZE, dtype=torch.float64)
        if values is not None:
            self.table.weight.data = values.clone()

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        return self.table(input_ids)


def texts(count: int, seed: int) -> list[dict[str, Any]]:
    """Rows of tokens, all predicted but the first."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randint(0, SIZE, (count, 5), generator=generator)
    return [{"input_ids": row, "attention_mask": torch.ones_like(row)} for row in rows]


def pairs(count: int, seed: int) -> list[dict[str, Tensor]]:
    """Pairs of completions of unequal length after a prompt of two tokens, padded."""
    generator = torch.Generator().manual_seed(seed)
    rows = list[dict[str, Tensor]]()
    for place in range(count):
        row: dict[str, Tensor] = {}
        prompt = torch.randint(0, SIZE, (2,), generator=generator)
        for side, length in (("chosen", 2 + place % 2), ("rejected", 3 - place % 3)):
            tokens = torch.cat([prompt, torch.randint(0, SIZE, (length,), generator=generator)])
            kept = torch.arange(6) < len(tokens)
            row[f"{side}_input_ids"] = F.pad(tokens, (0, 6 - len(tokens)))
            row[f"{side}_attention_mask"] = kept.long()
            row[f"{side}_completion_mask"] = (kept & (torch.arange(6) >= 2)).long()
        rows.append(row)
    return rows


def logp(table: Tensor, row: dict[str, Tensor], side: str) -> Tensor:
    """The log-probability of a completion, token by token: written anew, not the library's."""
    tokens, mask = row[f"{side}_input_ids"], row[f"{side}_completion_mask"]
    total = table.new_zeros(())
    for place in range(1, len(tokens)):
        if mask[place]:
            total = total + table[tokens[place - 1]].log_softmax(0)[tokens[place]]
    return total


def logps(model: Table, batch: dict[str, Tensor]) -> Tensor:
    """`[batch, 2]`: those of a batch of pairs."""
    rows = [{name: value[place] for name, value in batch.items()} for place in range(len(batch["chosen_input_ids"]))]
    return torch.stack(
        [torch.stack([logp(model.table.weight, row, s) for s in ("chosen", "rejected")]) for row in rows]
    )


def sft_loss(table: Tensor, row: dict[str, Tensor]) -> Tensor:
    tokens = row["input_ids"]
    steps = [-table[tokens[place - 1]].log_softmax(0)[tokens[place]] for place in range(1, len(tokens))]
    return torch.stack(steps).mean()


def dpo_loss(table: Tensor, reference: Tensor, row: dict[str, Tensor]) -> Tensor:
    margin = logp(table, row, "chosen") - logp(table, row, "rejected")
    margin = margin - logp(reference, row, "chosen") + logp(reference, row, "rejected")
    return -torch.log(torch.sigmoid(BETA * margin))


def minimum(loss: Any, start: Tensor) -> Tensor:
    """By Newton's method, to the last digit."""
    values = start.clone()
    while True:
        gradient = torch.func.grad(loss)(values).flatten()
        if float(gradient.norm()) < 1e-13:
            return values
        matrix: Any = torch.autograd.functional.hessian(loss, values)
        matrix = matrix.reshape(len(gradient), -1)
        values = values - torch.linalg.solve(matrix, gradient).view_as(values)


def sft(rows: list[dict[str, Tensor]], weights: Tensor, start: Tensor | None = None) -> Tensor:
    def loss(table: Tensor) -> Tensor:
        each = torch.stack([sft_loss(table, row) for row in rows])
        return each @ weights / len(rows) + DECAY / 2 * table.square().sum()

    return minimum(loss, torch.zeros(SIZE, SIZE, dtype=torch.float64) if start is None else start)


def dpo(rows: list[dict[str, Tensor]], start: Tensor, reference: Tensor, near: Tensor | None = None) -> Tensor:
    def loss(table: Tensor) -> Tensor:
        each = torch.stack([dpo_loss(table, reference, row) for row in rows])
        return each.mean() + DECAY / 2 * table.square().sum() + ALPHA * (table - start).square().sum()

    return minimum(loss, start if near is None else near)

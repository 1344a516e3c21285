"""The table of words of a model, and which of its lines an example's gradient is about."""

import torch
from torch import Tensor

from stagetrace.curvature.ekfac import EKFAC
from stagetrace.taps.find import Tapped, probe_of
from stagetrace.taps.gradients import Sums

__all__ = ["SMALLEST", "table_of", "words_of"]

SMALLEST = EKFAC().exact
"""Entries up to which a table is no table of words: EK-FAC has it as one exact block."""


def table_of(tapped: Tapped) -> int | None:
    """The largest table in which examples look up several lines, each its own: its number among the tapped groups.

    None where there is none: positions are the same lines for every example, and a class or a user is one line.
    """
    found: dict[int, int] = {}
    with torch.no_grad():
        record = tapped.taps.record(probe_of(tapped.risk))
        for number, sums in enumerate(tapped.sums(record)):
            group = sums.group
            if group.how != "matrix" or not group.looks_up or group.layout.size <= SMALLEST:
                continue
            lines = [each for each in sums.rows() if not each.is_floating_point()]
            if any(each.shape[1] > 1 and bool((each != each[:1]).any()) for each in lines):
                found[number] = group.layout.size
    return max(found, key=lambda number: found[number], default=None)


def words_of(sums: Sums, gradients: dict[str, list[Tensor]]) -> list[Tensor]:
    """The words of each example of a batch, ascending: the lines of its table that its gradient is large in.

    Those that it looks up where the loss depends on it, which padding is not; and of a head that shares the table, the
    word that the loss raises most at each position: the label, whatever smooths or weighs it.
    """
    found: list[list[Tensor]] = [[] for _ in range(sums.size)]
    for rows, outs in zip(sums.rows(), sums.outs(gradients), strict=True):
        if rows.is_floating_point():
            lowest, lines = outs.min(dim=-1)
            live = lowest < 0
        else:
            lines, live = rows, (outs != 0).any(dim=-1)
        for own, line, there in zip(found, lines, live, strict=True):
            own.append(line[there])
    return [torch.cat(own).unique() for own in found]

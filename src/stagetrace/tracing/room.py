"""How many examples are contracted layer by layer at once: their graph is held while they are."""

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from stagetrace.curvature.memory import graph_bytes
from stagetrace.stages.data import Batch
from stagetrace.stages.sparse import storages_of
from stagetrace.taps import Tapped
from stagetrace.taps.record import Record

__all__ = ["ROOM", "fitting"]

ROOM = 2**30
"""Bytes for the graph of the examples that go together, and as much for one layer's inputs and outputs once more."""


def fitting(tapped: Tapped, probe: Batch) -> int:
    """Examples whose graph, losses included, and layers' inputs take at most `ROOM`, by those of a probe."""

    def recorded() -> tuple[Record, Tensor]:
        record = tapped.taps.record(probe)
        with torch.enable_grad():
            return record, tapped.risk.reduce(record.outputs, probe)

    (record, losses), graph = graph_bytes(tapped.risk, probe, recorded)
    given = dict[int, int]()
    for call in (call for calls in record.calls.values() for call in calls):
        for leaf in tree_leaves((call.given, dict(call.named))):
            given |= storages_of(leaf) if isinstance(leaf, Tensor) else {}
    del losses
    return max(1, ROOM * len(probe) // max(1, graph + sum(given.values())))

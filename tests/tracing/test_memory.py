"""Scoring ten times as many examples takes no more memory: nothing of a batch outlives it but its scores."""

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from stagetrace import Chain, Identity, Query, Stage, trace
from tests import jobs

BATCH = 50
WIDTH = 20_000
"""One batch's hidden values take 4 MB; a run holds several such at once, and no more after ten times as many."""

MANY, FEW = 1_900, 250
ALLOWED = 12 * 2**20
"""What the peaks may differ by: scores, indices and the allocator's whims."""


class Counted(Dataset):
    """`n` examples made from their index as they are read."""

    def __init__(self, n: int) -> None:
        self.n = n

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        angle = torch.tensor(float(index))
        return torch.stack([angle.sin(), angle.cos()]), (0.1 * angle).sin().reshape(1)


class Wide(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inside, self.outside = nn.Linear(2, WIDTH), nn.Linear(WIDTH, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.outside(torch.tanh(self.inside(x)))


def squared(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return (model(batch[0]) - batch[1]).square().squeeze(1)


def peak(n: int) -> int:
    """Trace `n` examples in this process; the peak of its resident memory until then, in bytes."""
    import resource
    import sys

    stage = Stage("wide", model=Wide(), objective=squared, data=Counted(n), batch_size=BATCH)
    scores = trace(Chain(stage), Query(Counted(BATCH)), curvature=Identity())["wide"]
    assert scores.n_examples == n
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_examples():
    pytest.importorskip("resource")
    assert BATCH * WIDTH * 4 * (MANY - FEW) // BATCH > 10 * ALLOWED, "a run that keeps every batch is caught"
    # glibc then gives freed tensors back at once, so that the peak is what the run holds
    fixed = {"MALLOC_MMAP_THRESHOLD_": "1000000"}
    both = f"from tests.tracing.test_memory import peak; print(peak({FEW}), peak({MANY}))"
    ended = jobs.run("-c", both, **fixed)
    assert ended.returncode == 0, ended.stderr
    few, many = map(int, ended.stdout.split())
    assert many - few < ALLOWED

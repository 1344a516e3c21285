"""What every test run has in common: few threads, fixed seeds, and no time limit on a drawn example."""

import hypothesis
import pytest
import torch

# The tests' matrices are small: more threads cost more than they bring, and would fight with torchrun's processes.
torch.set_num_threads(1)

# Derandomised, so that a failure seen once is seen again; a first example may be slow for reasons of its own.
hypothesis.settings.register_profile("stagetrace", deadline=None, derandomize=True, database=None)
hypothesis.settings.load_profile("stagetrace")


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)

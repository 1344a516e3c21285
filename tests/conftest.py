"""What every test run has in common: few threads, fixed seeds, a plain terminal, no time limit on a drawn example."""

import os

import hypothesis
import pytest
import torch

# The tests' matrices are small: more threads cost more than they bring, and would fight with torchrun's processes.
torch.set_num_threads(1)

# Derandomised, so that a failure seen once is seen again; a first example may be slow for reasons of its own.
hypothesis.settings.register_profile("stagetrace", deadline=None, derandomize=True, database=None)
hypothesis.settings.load_profile("stagetrace")


# Words are looked for in what is printed, here and in child processes: no colours, 80 columns, and a process alone,
# whatever the environment of the run says. The last is typer's own switch, which forces colours on some CI services.
for _name in ("COLUMNS", "LINES", "TERMINAL_WIDTH", "FORCE_COLOR", "PY_COLORS", "NO_COLOR", "TTY_COMPATIBLE"):
    os.environ.pop(_name, None)
for _name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
    os.environ.pop(_name, None)
os.environ["_TYPER_FORCE_DISABLE_TERMINAL"] = "1"


def pytest_configure(config: pytest.Config) -> None:
    # PyTorch's own, at the first use of forward mode: a DeprecationWarning until 2.13, a FutureWarning from then on
    config.addinivalue_line("filterwarnings", "ignore:`torch.jit.script` is deprecated:FutureWarning")


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)

"""Start a library's process and take what it found."""

import json
import os
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from safetensors.torch import load_file
from torch import Tensor

ROOT = Path(__file__).parents[2]
LAST = 300
"""Characters of an error that are kept."""


@final
@dataclass(frozen=True, eq=False)
class Called:
    """The line that the process printed; `left out` in it says why there is nothing else. And the file it wrote."""

    line: dict[str, Any]
    out: Path

    @property
    def tensors(self) -> dict[str, Tensor]:
        return load_file(self.out)


def called(
    python: Path, name: str, method: str, given: Path, out: Path, limit: float | None = None, before: Sequence[str] = ()
) -> Called:
    """One process on one thread, with this checkout on its path; a failure is a line with its reason.

    before: words between the interpreter and `-m`, as of torchrun. limit: seconds of the clock.
    """
    words = [str(python), *before, "-m", f"benchmarks.rivals.{name}", str(given), str(out), method]
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)]),
        "PYTHONWARNINGS": "ignore",
        "HF_HUB_OFFLINE": "1",
    }
    try:
        done = subprocess.run(
            words, env=environment, cwd=ROOT, check=False, capture_output=True, text=True, timeout=limit
        )
    except OSError as cause:
        return Called({"left out": f"{python}: {cause.strerror}"}, out)
    except subprocess.TimeoutExpired:
        return Called({"left out": f"stopped after {limit:g} s"}, out)
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode or not lines:
        why = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        return Called({"left out": why[:LAST]}, out)
    return Called(json.loads(lines[-1]), out)

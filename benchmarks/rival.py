"""kronfluence's EK-FAC on a benchmark's model, examples and queries, in a process and an environment of its own."""

import json
import os
import subprocess
import tempfile
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import final

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from benchmarks.setting import Asked
from experiments.tasks import Task


@final
@dataclass(frozen=True, eq=False)
class Rival:
    """Processor seconds of the fit and of the scores, the process's peak in MB, and the scores `[queries, examples]`.

    The scores have this library's sign: positive = harmful.
    """

    fit: float
    score: float
    peak: float
    scores: Tensor

    @staticmethod
    def of(
        asked: Asked, model: nn.Module, task: Task, chosen: Sequence[int], queries: int, damping: float
    ) -> "Rival | None":
        """Factors of the chosen examples, scores of all; None, and a warning, where the process failed."""
        with tempfile.TemporaryDirectory() as folder:
            given, scores = Path(folder) / "given.safetensors", Path(folder) / "scores.safetensors"
            tensors = {f"model.{name}": value for name, value in model.state_dict().items()}
            tensors |= {"train.pixels": task.train.pixels, "train.labels": task.train.labels}
            tensors |= {"test.pixels": task.test.pixels[:queries], "test.labels": task.test.labels[:queries]}
            tensors["chosen"] = torch.tensor(chosen)
            save_file({name: value.contiguous() for name, value in tensors.items()}, given)
            words = [str(asked.rival), "-m", "benchmarks.rival_kronfluence", str(given), str(scores), str(damping)]
            environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
            done = subprocess.run(words, env=environment, check=False, capture_output=True, text=True)
            if done.returncode:
                why = (done.stderr.strip().splitlines() or ["no message"])[-1]
                warnings.warn(f"{asked.rival}: kronfluence was left out ({why})", stacklevel=2)
                return None
            found = json.loads(done.stdout.splitlines()[-1])
            # its scores are positive where the example helps
            return Rival(found["fit"], found["score"], found["peak MB"], -load_file(scores)["scores"].float())

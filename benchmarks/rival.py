"""kronfluence's EK-FAC on a benchmark's model, examples and queries, by the protocol of `benchmarks/rivals`.

`--rival PYTHON` is the interpreter that `benchmarks bench --envs DIR` made: DIR/kronfluence/bin/python.
"""

import tempfile
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import final

from torch import Tensor, nn
from torch.utils.data import TensorDataset

from benchmarks.rivals.call import called
from benchmarks.rivals.given import Given, Settings
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
        assert asked.rival is not None
        train = TensorDataset(task.train.pixels, task.train.labels)
        tests = TensorDataset(task.test.pixels[:queries], task.test.labels[:queries])
        with tempfile.TemporaryDirectory() as folder:
            given, out = Path(folder) / "given.safetensors", Path(folder) / "scores.safetensors"
            Given(Settings("images", damping), model, train, tests, tuple(chosen)).write(given)
            found = called(asked.rival, "kronfluence", "EK-FAC", given, out)
            if "left out" in found.line:
                why = found.line["left out"]
                warnings.warn(f"{asked.rival}: kronfluence was left out ({why})", stacklevel=2)
                return None
            line = found.line
            return Rival(line["fit, s"], line["score, s"], line["peak MB"], found.tensors["scores"])

"""kronfluence 1.0.1 for the benchmark `ekfac`: `PYTHON -m benchmarks.rival_kronfluence GIVEN OUT QUERIES DAMPING`.

    python -m venv rival && rival/bin/pip install -c constraints.txt -e ".[experiments]" kronfluence==1.0.1

Fits EK-FAC on the chosen examples and scores all of them; a line of JSON with the seconds of the processor goes to the
screen, the scores `[queries, examples]` (positive = the example helps) to OUT.
"""

# The other library is in an environment of its own.
# pyright: reportMissingImports=false, reportUntypedBaseClass=false

import json
import logging
import sys
import tempfile
import time
import warnings
from typing import Any

import torch
import torch.nn.functional as F
from kronfluence.analyzer import Analyzer, prepare_model
from kronfluence.arguments import FactorArguments, ScoreArguments
from kronfluence.task import Task
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.data import Subset, TensorDataset

from experiments.networks import ConvNet

BATCH = 1024


class CrossEntropy(Task):
    def compute_train_loss(self, batch: Any, model: nn.Module, sample: bool = False) -> Tensor:
        pixels, labels = batch
        logits = model(pixels)
        if sample:
            with torch.no_grad():
                labels = torch.multinomial(logits.softmax(dim=1), 1).flatten()
        return F.cross_entropy(logits, labels, reduction="sum")

    def compute_measurement(self, batch: Any, model: nn.Module) -> Tensor:
        return self.compute_train_loss(batch, model)


def main() -> None:
    given, out, number, damping = sys.argv[1:]
    tensors = load_file(given)
    train = TensorDataset(tensors["pixels"], tensors["labels"])
    asked = TensorDataset(tensors["queries"][: int(number)], tensors["answers"][: int(number)])
    weights = {name.removeprefix("model."): value for name, value in tensors.items() if name.startswith("model.")}
    model = ConvNet(tensors["pixels"].shape[1:], len(list(weights.values())[-1]))
    model.load_state_dict(weights)
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    torch.set_num_threads(1)
    task = CrossEntropy()
    prepared = prepare_model(model.eval(), task)
    with tempfile.TemporaryDirectory() as folder:
        analyzer = Analyzer("ekfac", prepared, task, cpu=True, disable_tqdm=True, output_dir=folder)
        started = time.process_time()
        analyzer.fit_all_factors(
            "factors",
            Subset(train, tensors["chosen"].tolist()),
            per_device_batch_size=BATCH,
            factor_args=FactorArguments(strategy="ekfac"),
        )
        fitted = time.process_time()
        analyzer.compute_pairwise_scores(
            "scores",
            "factors",
            query_dataset=asked,
            train_dataset=train,
            per_device_query_batch_size=min(int(number), BATCH),
            per_device_train_batch_size=BATCH,
            score_args=ScoreArguments(damping_factor=float(damping)),
        )
        scores = analyzer.load_pairwise_scores("scores")["all_modules"]
        ended = time.process_time()
    save_file({"scores": scores.float().contiguous()}, out)
    print(json.dumps({"queries": int(number), "processor s": ended - started, "fit, processor s": fitted - started}))


if __name__ == "__main__":
    main()

"""kronfluence 1.0.1 (EK-FAC, Grosse et al. 2023) beside `queries` and `ekfac`, in an environment of its own.

    python -m venv rival && rival/bin/pip install -c constraints.txt -e ".[experiments]" kronfluence==1.0.1
    python -m benchmarks queries --data DIR --out FILE --rival rival/bin/python

Called by `rival.py` with: a file of the network's weights and all tensors, where scores go, the damping.
"""

# The other library is in an environment of its own.
# pyright: reportMissingImports=false, reportUntypedBaseClass=false

import json
import logging
import resource
import sys
import tempfile
import time
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


class Losses(Task):
    """Cross-entropy, summed over a batch; labels drawn from the model's own predictions for the factors."""

    def compute_train_loss(self, batch: Any, model: nn.Module, sample: bool = False) -> Tensor:
        pixels, labels = batch
        logits = model(pixels)
        if sample:
            with torch.no_grad():
                labels = torch.multinomial(logits.softmax(dim=-1), 1).flatten()
        return F.cross_entropy(logits, labels, reduction="sum")

    def compute_measurement(self, batch: Any, model: nn.Module) -> Tensor:
        return self.compute_train_loss(batch, model)


def main(given: str, scores: str, damping: str) -> None:
    torch.manual_seed(0)
    tensors = load_file(given)
    weights = {name.removeprefix("model."): value for name, value in tensors.items() if name.startswith("model.")}
    train = TensorDataset(tensors["train.pixels"], tensors["train.labels"])
    tests = TensorDataset(tensors["test.pixels"], tensors["test.labels"])
    chosen = Subset(train, tensors["chosen"].tolist())
    classes = int(tensors["train.labels"].max()) + 1
    model = ConvNet(tensors["train.pixels"].shape[1:], classes).eval()
    model.load_state_dict(weights)
    with tempfile.TemporaryDirectory() as folder:
        analyzer = Analyzer(
            "queries", prepare_model(model, Losses()), Losses(), cpu=True, disable_tqdm=True, output_dir=folder
        )
        times = [time.process_time()]
        analyzer.fit_all_factors(
            "factors", chosen, per_device_batch_size=1024, factor_args=FactorArguments(strategy="ekfac")
        )
        times.append(time.process_time())
        analyzer.compute_pairwise_scores(
            "scores",
            "factors",
            query_dataset=tests,
            train_dataset=train,
            per_device_query_batch_size=len(tests),
            per_device_train_batch_size=1024,
            score_args=ScoreArguments(damping_factor=float(damping)),
        )
        found = analyzer.load_pairwise_scores("scores")["all_modules"]
        times.append(time.process_time())
    save_file({"scores": found.contiguous()}, scores)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"fit": times[1] - times[0], "score": times[2] - times[1], "peak MB": peak}))


if __name__ == "__main__":
    logging.disable(logging.WARNING)
    main(*sys.argv[1:])

"""kronfluence 1.0.1 (EK-FAC, Grosse et al. 2023) on the fine-tuned model with both heads.

    python -m venv rival && rival/bin/pip install -c constraints.txt -e ".[experiments]" kronfluence==1.0.1
    rival/bin/python -m benchmarks.two_stage.rivals.kronfluence --data DIR --work runs/two-stage

Factors are fitted on the pretraining examples with the pretraining's head, in the linear and convolutional layers of
the trunk (embedding tables and norms have no factors there), damped by a tenth of the mean eigenvalue. kronfluence's
score of a loss is `(gradient of the query) . H^-1 (gradient of the example's loss)` with H of the mean loss: positive =
the example helps. Leaving it out of n therefore changes the query loss by `+ score / n`.
"""

# The other library is in an environment of its own.
# pyright: reportMissingImports=false, reportUntypedBaseClass=false

import logging
import tempfile
from typing import Any

import torch
from kronfluence.analyzer import Analyzer, prepare_model
from kronfluence.arguments import FactorArguments, ScoreArguments
from kronfluence.task import Task
from kronfluence.utils.dataset import DataLoaderKwargs
from torch import Tensor, nn

from benchmarks.two_stage.rivals.both import Single, command

NAME, FILE = "kronfluence, EK-FAC", "kronfluence-ek-fac"


class Losses(Task):
    """A batch is `(kind, places)`: examples are looked up, so that every kind of batch goes through its loader."""

    def __init__(self, single: Single) -> None:
        self.single = single
        self.needed = _in_loss(single)  # now: the model is frozen when it is asked for

    def compute_train_loss(self, batch: Any, model: nn.Module, sample: bool = False) -> Tensor:
        del model  # prepared in place: it is `single.model`
        return self.single.each_loss("first", self.single.batch("first", batch.tolist()), sample=sample).sum()

    def compute_measurement(self, batch: Any, model: nn.Module) -> Tensor:
        del model
        return self.single.each_loss("last", self.single.batch("last", batch.tolist())).sum()

    def get_influence_tracked_modules(self) -> list[str]:
        kinds = (nn.Linear, nn.Conv2d)
        found = [name for name, module in self.single.model.named_modules() if isinstance(module, kinds)]
        # the head of a causal language model is its table of tokens, which is not tracked elsewhere either
        return [
            n for n in found if n.startswith(f"{self.single.model.trunk}.") and "lm_head" not in n and n in self.needed
        ]


def _in_loss(single: Single) -> set[str]:
    """The layers that the pretraining's loss depends on: a pooler may be the classifier's alone."""
    named = {n: m.weight for n, m in single.model.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)}
    loss = single.each_loss("first", single.batch("first", [0])).sum()
    slopes = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
    return {name for name, slope in zip(named, slopes, strict=True) if slope is not None}


def effects(single: Single) -> Tensor:
    """Removal effects of the pretraining examples for each test example: `[tests, n]`."""
    _linear(single.model)
    task = Losses(single)
    model = prepare_model(single.model, task)
    model.train(False)
    train, tests = (_Places(len(examples)) for examples in (single.train, single.tests))
    with tempfile.TemporaryDirectory() as folder:
        analyzer = Analyzer("two-stage", model, task, cpu=True, disable_tqdm=True, output_dir=folder)
        analyzer.set_dataloader_kwargs(DataLoaderKwargs(num_workers=0))
        analyzer.fit_all_factors(
            "factors", train, per_device_batch_size=64, factor_args=FactorArguments(strategy="ekfac")
        )
        analyzer.compute_pairwise_scores(
            "scores",
            "factors",
            query_dataset=tests,
            train_dataset=train,
            per_device_query_batch_size=64,
            per_device_train_batch_size=64,
            score_args=ScoreArguments(damping_factor=None),  # a tenth of the mean eigenvalue
        )
        found = analyzer.load_pairwise_scores("scores")["all_modules"]
    return found.double() / len(single.train)


class _Places(torch.utils.data.Dataset[int]):
    """The numbers of a data set's examples."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, place: int) -> int:
        return place


def _linear(model: nn.Module) -> None:
    """GPT-2's `Conv1D`, which is a linear layer with its weight transposed, as `nn.Linear`, which has factors."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if type(child).__name__ != "Conv1D":
                continue
            weight: Tensor = child.weight  # pyright: ignore[reportAssignmentType]
            layer = nn.Linear(weight.shape[0], weight.shape[1])
            with torch.no_grad():
                layer.weight.copy_(weight.mT)
                layer.bias.copy_(child.bias)  # pyright: ignore[reportArgumentType]
            setattr(parent, name, layer)


if __name__ == "__main__":
    logging.disable(logging.WARNING)
    command(NAME, FILE, "nats", effects)

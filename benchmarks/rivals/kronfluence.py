"""kronfluence 1.0.1 (EK-FAC, Grosse et al. 2023).

It tracks linear and convolutional layers. GPT-2's `Conv1D` is rewritten to `nn.Linear`, as its documentation says; the
table of tokens, positions and norms are not tracked. Labels of the factors are drawn from the model.
"""

# The other library is in an environment of its own.
# pyright: reportMissingImports=false, reportUntypedBaseClass=false

import logging
import tempfile

import torch
from kronfluence.analyzer import Analyzer, prepare_model
from kronfluence.arguments import FactorArguments, ScoreArguments
from kronfluence.task import Task
from torch import Tensor, nn

from benchmarks.rivals.given import Batch, Given
from benchmarks.rivals.process import Found, Spent, command


class Losses(Task):
    """Losses summed over a batch, as it asks for."""

    def __init__(self, given: Given) -> None:
        super().__init__()
        self.given = given

    def compute_train_loss(self, batch: Batch, model: nn.Module, sample: bool = False) -> Tensor:
        return self.given.losses(model, batch, sample=sample).sum()

    def compute_measurement(self, batch: Batch, model: nn.Module) -> Tensor:
        return self.compute_train_loss(batch, model)

    def get_influence_tracked_modules(self) -> list[str]:
        kinds = (nn.Linear, nn.Conv2d)
        found = [name for name, module in self.given.model.named_modules() if isinstance(module, kinds)]
        return [name for name in found if name != "lm_head"]  # that is the table of tokens


def ekfac(given: Given, spent: Spent) -> Found:
    """Factors of the curvature's examples, pairwise scores; for one query the mean of the queries' gradients."""
    settings = given.settings
    linear(given.model)
    task = Losses(given)
    tracked = task.get_influence_tracked_modules()
    covers = sum(p.numel() for name in tracked for p in given.model.get_submodule(name).parameters())
    with tempfile.TemporaryDirectory() as folder:
        with spent.on("fit"):
            model = prepare_model(given.model, task)
            analyzer = Analyzer("bench", model, task, cpu=True, disable_tqdm=True, output_dir=folder)
            analyzer.fit_all_factors(
                "factors",
                given.curvature,
                per_device_batch_size=settings.batch,
                factor_args=FactorArguments(strategy="ekfac"),
            )
        with spent.on("score"):
            analyzer.compute_pairwise_scores(
                "scores",
                "factors",
                query_dataset=given.tests,
                train_dataset=given.train,
                per_device_query_batch_size=min(len(given.tests), 1024),
                per_device_train_batch_size=settings.batch,
                score_args=ScoreArguments(damping_factor=settings.damping, aggregate_query_gradients=settings.mean),
            )
            found = analyzer.load_pairwise_scores("scores")["all_modules"]
    if settings.mean:  # the sum over the queries
        found = found / len(given.tests)
    notes = () if covers == given.parameters else (f"{len(tracked)} layers are tracked",)
    return Found(-found, covers, approximates=f"G + {settings.damping:g}", notes=notes)


def linear(model: nn.Module) -> None:
    """GPT-2's `Conv1D`, a linear layer with its weight transposed, as `nn.Linear`."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if type(child).__name__ == "Conv1D":
                weight, bias = dict(child.named_parameters()).values()
                layer = nn.Linear(weight.shape[0], weight.shape[1])
                with torch.no_grad():
                    layer.weight.copy_(weight.mT)
                    layer.bias.copy_(bias)
                setattr(parent, name, layer)


if __name__ == "__main__":
    logging.disable(logging.WARNING)
    command("kronfluence", {"EK-FAC": ekfac})

"""A link of one's own in one file: elastic weight consolidation, a pull with a strength for each entry of a parameter.

from elastic import Elastic, fisher

strengths = {name: 0.5 * strength * entries for name, entries in fisher(pretrain).items()}
finetune = Stage("finetune", model=finetuned, objective=loss, data=task, link=Elastic("encoder", strengths))
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from stagetrace import Link, Stage


@dataclass(frozen=True, eq=False)
class Elastic(Link):
    """The shared parameters were trained further under the penalty `sum_j a_j (W_j - W'_j)^2`.

    With `a = strength / 2 * Fisher information` that is Kirkpatrick et al. (2017), eq. 3.

    strengths: `a`, by this stage's parameter names, each of its parameter's shape.
    """

    strengths: Mapping[str, Tensor]

    def strength(self, anchored) -> Mapping[str, Tensor]:
        return self.strengths


def fisher(stage: Stage) -> dict[str, Tensor]:
    """The diagonal of the empirical Fisher information: the mean over examples of the squared gradient of a loss."""
    parameters = {name: p for name, p in stage.evaluated.named_parameters() if p.requires_grad}
    found = {name: torch.zeros_like(p) for name, p in parameters.items()}
    for batch in DataLoader(stage.data, batch_size=1, collate_fn=stage.collate):
        loss = stage.loss.losses(stage.loss.outputs(stage.evaluated, batch), batch).sum()
        gradients = torch.autograd.grad(loss, list(parameters.values()))
        for entries, gradient in zip(found.values(), gradients, strict=True):
            entries += gradient.square() / len(stage.data)
    return found

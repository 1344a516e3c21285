"""captum 0.9.0: `ArnoldiInfluenceFunction` (Schioppa et al. 2022) and `TracInCPFast` (Pruthi et al. 2020).

Its Hessian is that of the *sum* of the losses, so a damping of the mean is multiplied by the number of examples. The
influence functions are not exported; they are imported from where they lie.
"""

# The other library is in an environment of its own.
# pyright: reportMissingImports=false

import tempfile
from pathlib import Path
from typing import Any

import torch
from captum.influence import TracInCPFast
from captum.influence._core.arnoldi_influence_function import ArnoldiInfluenceFunction
from torch import nn
from torch.utils.data import DataLoader

from benchmarks.rivals.given import Given
from benchmarks.rivals.process import Found, Spent, command

STEPS, RANK = 200, 50


def arnoldi(given: Given, spent: Spent) -> Found:
    """The curvature of the given examples in 50 of 200 Arnoldi directions."""
    settings, examples = given.settings, len(given.chosen)
    counted = _Counted()
    train = DataLoader(given.train, batch_size=settings.batch)
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = Path(folder) / "model.pt"
        torch.save(given.model.state_dict(), checkpoint)
        with spent.on("fit"):
            influence = ArnoldiInfluenceFunction(
                given.model,
                train,
                str(checkpoint),
                loss_fn=nn.CrossEntropyLoss(reduction="sum"),
                hessian_dataset=DataLoader(given.curvature, batch_size=examples),
                sample_wise_grads_per_batch=True,
                arnoldi_dim=STEPS,
                projection_dim=RANK,
                hessian_reg=settings.damping * examples,
            )
    given.model.eval()
    with spent.on("score"):
        tests = DataLoader(given.tests, batch_size=settings.batch)
        asked = influence.compute_intermediate_quantities(tests, aggregate=settings.mean, test=True)
        each = influence.compute_intermediate_quantities(train)
        scores = (each @ asked.T).T.detach() * examples  # of the sum's Hessian: 1 / examples of the mean's inverse
    if settings.mean:  # the sum over the queries
        scores = scores / len(given.tests)
    notes = (f"{RANK} of {STEPS} Arnoldi directions",)
    approximates = f"H + {settings.damping:g}"
    return Found(-scores, given.parameters, approximates=approximates, products=counted.products, notes=notes)


def tracin(given: Given, spent: Spent) -> Found:
    """Products of gradients of the last layer, no curvature."""
    inputs, labels = given.tests.tensors
    last = [module for module in given.model.modules() if isinstance(module, nn.Linear)][-1]
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = Path(folder) / "model.pt"
        torch.save(given.model.state_dict(), checkpoint)
        with spent.on("fit"):
            influence = TracInCPFast(
                given.model,
                last,
                given.train,
                [str(checkpoint)],
                loss_fn=nn.CrossEntropyLoss(reduction="sum"),
                batch_size=given.settings.batch,
            )
        given.model.eval()
        with spent.on("score"):
            scores = influence.influence((inputs, labels)).detach()
            if given.settings.mean:
                scores = scores.mean(dim=0, keepdim=True)
    return Found(-scores, sum(p.numel() for p in last.parameters()), notes=("no curvature",))


class _Counted:
    """Counts the products of Hessian and vector."""

    def __init__(self) -> None:
        self.products, self.inner = 0, torch.autograd.functional.hvp
        torch.autograd.functional.hvp = self  # pyright: ignore[reportAttributeAccessIssue]

    def __call__(self, *words: Any, **more: Any) -> Any:
        self.products += 1
        return self.inner(*words, **more)


if __name__ == "__main__":
    command("captum", {"Arnoldi": arnoldi, "TracInCPFast": tracin})

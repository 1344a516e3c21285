"""dattri 0.3.0: Arnoldi, EK-FAC and TRAK; its conjugate gradients are left out.

`attribute()` keeps every step's graph, 12 GB in Arnoldi, unless it is called inside `torch.no_grad()`, which its
documentation does not say: it is done here. The loss of a set of queries is one "example" that holds them all.
"""

# The other library is in an environment of its own.
# pyright: reportMissingImports=false

from typing import Any

import torch
import torch.nn.functional as F
from dattri.algorithm.influence_function import IFAttributorArnoldi, IFAttributorEKFAC
from dattri.algorithm.trak import TRAKAttributor
from dattri.task import AttributionTask
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.rivals.given import Given
from benchmarks.rivals.process import Found, LeftOut, Spent, command

STEPS, RANK, PROJECTIONS = 200, 50, 512


def cg(given: Given, spent: Spent) -> Found:
    """Not run."""
    del spent
    batches = -(-len(given.train) // given.settings.batch)
    raise LeftOut(f"attribute() solves anew for each batch of training examples, here {batches} times for one query")


def arnoldi(given: Given, spent: Spent) -> Found:
    """The Hessian of the curvature's examples in the largest of 200 Arnoldi directions."""
    damping = given.settings.damping
    task = _task(given, target=_queried(given))
    attributor = IFAttributorArnoldi(task, proj_dim=RANK, max_iter=STEPS, regularization=damping)
    scores = _attributed(given, spent, attributor)
    return Found(
        -scores,
        given.parameters,
        approximates=f"H + {damping:g}",
        notes=(f"at most {RANK} directions; the fit is in the scores",),
    )


def ekfac(given: Given, spent: Spent) -> Found:
    """Linear layers; its Fisher matrix is that of the target function, so one function serves as both."""
    damping = given.settings.damping
    attributor = IFAttributorEKFAC(_task(given, target=_queried(given)), damping=damping)
    scores = _attributed(given, spent, attributor)
    linear = [module for module in given.model.modules() if isinstance(module, nn.Linear)]
    covers = sum(p.numel() for module in linear for p in module.parameters())
    return Found(-scores, covers, approximates=f"G + {damping:g}", notes=("linear layers only",))


def trak(given: Given, spent: Spent) -> Found:
    """One checkpoint, 512 projections; the target is minus the loss of the queries."""
    classes = int(given.train.tensors[1].max()) + 1

    def margin(weights: Any, example: Any) -> Tensor:
        inputs, label = example
        logits = functional_call(given.model, weights, (inputs[None],))[0]
        own = torch.arange(classes) == label
        return (logits * own).sum() - torch.logsumexp(torch.where(own, -torch.inf, logits), 0)

    def correct(weights: Any, example: Any) -> Tensor:
        inputs, label = example
        return torch.exp(-F.cross_entropy(functional_call(given.model, weights, (inputs[None],)), label[None]))

    def target(weights: Any, example: Any) -> Tensor:
        inputs, labels = example if given.settings.mean else [part[None] for part in example]
        return -F.cross_entropy(functional_call(given.model, weights, (inputs,)), labels)

    weights = {name: value.clone() for name, value in given.model.state_dict().items()}
    task = AttributionTask(loss_func=margin, target_func=target, model=given.model, checkpoints=weights)
    projector = {"proj_dim": PROJECTIONS, "device": "cpu", "proj_seed": given.settings.seed}
    attributor = TRAKAttributor(task, correct_probability_func=correct, projector_kwargs=projector, device="cpu")
    with spent.on("fit"):
        attributor.cache(DataLoader(given.train, batch_size=given.settings.batch))
    with spent.on("score"):
        found = attributor.attribute(_tests(given)).detach()
    notes = (f"{PROJECTIONS} projections, one checkpoint",)
    return Found(-found.mT, given.parameters, notes=notes)


def _attributed(given: Given, spent: Spent, attributor: Any) -> Tensor:
    """Scores `[queries, examples]`, positive where the example helps."""
    with spent.on("fit"):  # one batch: it adds up the inverses of several
        attributor.cache(DataLoader(given.curvature, batch_size=len(given.chosen)))
    with spent.on("score"), torch.no_grad():
        found = attributor.attribute(DataLoader(given.train, batch_size=given.settings.batch), _tests(given))
    return found.detach().mT


def _tests(given: Given) -> DataLoader[tuple[Tensor, ...]]:
    parts = given.tests.tensors
    if given.settings.mean:
        return DataLoader(TensorDataset(*(part[None] for part in parts)), batch_size=1)
    return DataLoader(given.tests, batch_size=min(len(given.tests), 100))


def _task(given: Given, target: Any) -> Any:
    def loss(weights: Any, batch: Any) -> Tensor:
        inputs, labels = batch
        return F.cross_entropy(functional_call(given.model, weights, (inputs,)), labels)

    weights = {name: value.clone() for name, value in given.model.state_dict().items()}
    return AttributionTask(loss_func=loss, target_func=target, model=given.model, checkpoints=weights)


def _queried(given: Given) -> Any:
    """The loss of one query; a query that holds a set of examples has one axis more."""
    axes = given.tests.tensors[0].ndim

    def target(weights: Any, batch: Any) -> Tensor:
        inputs, labels = batch
        if inputs.ndim > axes:
            inputs, labels = inputs[0], labels[0]
        return F.cross_entropy(functional_call(given.model, weights, (inputs,)), labels)

    return target


if __name__ == "__main__":
    command("dattri", {"CG": cg, "Arnoldi": arnoldi, "EK-FAC": ekfac, "TRAK": trak})

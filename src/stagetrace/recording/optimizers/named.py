"""The rules by the names of PyTorch's classes, and what is known of the optimisers that have none."""

from collections.abc import Callable

import torch

from stagetrace.errors import refuse
from stagetrace.recording.optimizers.adagrad import Adagrad
from stagetrace.recording.optimizers.adam import adam, nadam, radam
from stagetrace.recording.optimizers.asgd import ASGD
from stagetrace.recording.optimizers.differentiated import Differentiated
from stagetrace.recording.optimizers.moments import Moments
from stagetrace.recording.optimizers.rmsprop import RMSprop
from stagetrace.recording.optimizers.rule import Rule
from stagetrace.recording.optimizers.sgd import SGD

RULES: dict[type[torch.optim.Optimizer], Rule] = {
    torch.optim.Adam: Moments(torch.optim.Adam, adam),
    torch.optim.AdamW: Moments(torch.optim.AdamW, adam, decoupled=True),
    torch.optim.SGD: SGD(),
    torch.optim.RMSprop: RMSprop(),
    torch.optim.Adagrad: Adagrad(),
    torch.optim.NAdam: Moments(torch.optim.NAdam, nadam),
    torch.optim.RAdam: Moments(torch.optim.RAdam, radam),
    torch.optim.ASGD: ASGD(),
    torch.optim.Adamax: Differentiated(torch.optim.Adamax, ("exp_avg", "exp_inf")),
    torch.optim.Adadelta: Differentiated(torch.optim.Adadelta, ("square_avg", "acc_delta")),
}

# By a word of the class's name in small letters, whatever package it comes from: the reason, and what to use instead.
REFUSED = {
    "8bit": (
        "its moments are rounded to 8 bits at every step, and a rounding has no derivative",
        "the same optimiser of torch.optim in 32 bits",
    ),
    "4bit": (
        "its moments are rounded to 4 bits at every step, and a rounding has no derivative",
        "the same optimiser of torch.optim in 32 bits",
    ),
    "lion": (
        "its step is the sign of a mean of gradients, whose derivative is 0 almost everywhere",
        "torch.optim.AdamW",
    ),
    "rprop": (
        "its step follows the signs of gradients, whose derivative is 0 almost everywhere",
        "torch.optim.RMSprop",
    ),
    "muon": ("its step makes a matrix orthogonal by an iteration, whose adjoint is not written", "torch.optim.AdamW"),
    "adafactor": ("its step scales by means over rows and columns, whose adjoint is not written", "torch.optim.AdamW"),
    "lbfgs": ("its step evaluates the loss again and again at points that are not recorded", "torch.optim.SGD"),
    "sparseadam": (
        "its step leaves out the rows without a gradient, and no adjoint of a sparse step is written",
        "torch.optim.Adam, with nn.Embedding(..., sparse=False)",
    ),
}


def name_of(optimizer_class: type[torch.optim.Optimizer]) -> str:
    """The qualified name: "torch.optim.adam.Adam"."""
    return f"{optimizer_class.__module__}.{optimizer_class.__qualname__}"


def class_named(name: str, where: str) -> Callable[..., torch.optim.Optimizer]:
    """The class of that qualified name, among those that have a rule: it is looked up, and nothing is imported.

    where: what a message starts with.

    Raises:
        DescriptionError: the class has no rule; the message says why and what to use instead.
    """
    for known in RULES:
        if name_of(known) == name:
            return known
    known_reason = next((reason for word, reason in REFUSED.items() if word in name.rpartition(".")[2].lower()), None)
    why, instead = known_reason or (
        "its step is not known here",
        "one of " + ", ".join(f"torch.optim.{known.__name__}" for known in RULES),
    )
    refuse(f"{where}: {name} cannot be run backwards: {why}. Train with {instead} instead")


def rule_of(optimizer_class: str, where: str) -> Rule:
    """The rule of a class of optimisers.

    optimizer_class: the qualified name, "torch.optim.adam.Adam".
    where: what a message starts with.

    Raises:
        DescriptionError: see `class_named`.
    """
    kind = class_named(optimizer_class, where)
    return next(rule for known, rule in RULES.items() if known is kind)

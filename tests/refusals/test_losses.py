"""A loss that is not one finite number for each example alone is refused, and so is what is no objective."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from stagetrace.errors import DataError
from tests.refusals.described import NEITHER_NAN, Bad, at, refused, sound, spoilt


def as_it_is(model: nn.Module, batch: Any) -> Tensor:
    """A loss that takes an example's first input as it is."""
    inputs, _ = batch
    return model(inputs.clamp(-1, 1)).sum(dim=1) + inputs[:, 0]


def reduced(model: nn.Module, batch: Any) -> Tensor:
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


def per_logit(model: nn.Module, batch: Any) -> Tensor:
    return model(batch[0])


def number(model: nn.Module, batch: Any) -> Any:
    return float(reduced(model, batch))


def relative(model: nn.Module, batch: Any) -> Tensor:
    """The loss of each example relative to the batch's largest."""
    losses = nn.functional.cross_entropy(model(batch[0]), batch[1], reduction="none")
    return losses / losses.max()


class OfLabels:
    """An objective whose losses take labels where the library gives the batch."""

    def outputs(self, model: nn.Module, batch: Any) -> Tensor:
        return model(batch[0])

    def losses(self, outputs: Tensor, labels: Tensor) -> Tensor:
        return nn.functional.cross_entropy(outputs, labels, reduction="none")


TABLE = [
    Bad(
        "a reduced loss",
        at("pretrain", objective=reduced),
        ("'pretrain'", "reduced to one number for", "reduction='none'"),
        DataError,
    ),
    Bad(
        "a reduced query loss",
        at("query", objective=reduced),
        ("the query", "reduced to one number", "reduction='none'"),
        DataError,
    ),
    Bad(
        "a loss per logit",
        at("pretrain", objective=per_logit),
        ("'pretrain'", "3] for a batch of", "it must be ["),
        DataError,
    ),
    Bad(
        "a number for a loss",
        at("pretrain", objective=number),
        ("'pretrain'", "one loss per example", "float"),
        DataError,
    ),
    Bad(
        "a loss relative to the batch",
        at("finetune", objective=relative),
        ("'finetune'", "example ", "what else is in its batch", "must depend on the example alone"),
        DataError,
    ),
    Bad(
        "a NaN loss",
        at("pretrain", data=spoilt(40, 3, float("nan"))),
        ("'pretrain'", "example 3 is nan", NEITHER_NAN),
        DataError,
    ),
    Bad(
        "an infinite loss",
        at("finetune", objective=as_it_is, data=spoilt(40, 30, float("inf"))),
        ("'finetune'", "example 30 is inf", NEITHER_NAN),
        DataError,
    ),
    Bad(
        "a NaN loss of a query",
        at("query", data=spoilt(40, 3, float("nan"))),
        ("the query", "example 3 is nan", NEITHER_NAN),
        DataError,
    ),
    Bad(
        "a loss of PyTorch's",
        at("pretrain", objective=nn.functional.cross_entropy),
        ("'pretrain'", "cross_entropy", "use Classification()", "losses(model, batch)"),
    ),
    Bad(
        "a loss of PyTorch's, wrapped",
        at("finetune", objective=partial(nn.functional.binary_cross_entropy_with_logits, reduction="none")),
        ("'finetune'", "binary_cross_entropy_with_logits(model(batch[0]), batch[1], reduction='none')"),
    ),
    Bad(
        "the forward of a loss module",
        at("finetune", objective=nn.BCEWithLogitsLoss().forward),
        ("'finetune'", "BCEWithLogitsLoss", "BinaryClassification()", "MultiLabel()"),
    ),
    Bad(
        "a weighted loss module",
        at("pretrain", objective=nn.CrossEntropyLoss(weight=torch.ones(3))),
        ("'pretrain'", "CrossEntropyLoss (with weight)", "use stagetrace.objectives, or a function"),
    ),
    Bad(
        "a loss of outputs and labels",
        at("query", objective=lambda logits, targets: nn.functional.cross_entropy(logits, targets, reduction="none")),
        ("the query", "(logits, targets)", "losses(model, batch)", "calls the model itself"),
    ),
    Bad("a loss of a batch", at("pretrain", objective=lambda batch: batch[0]), ("'pretrain'", "(batch)", "two arg")),
    Bad(
        "an objective of outputs and labels",
        at("pretrain", objective=OfLabels()),
        ("'pretrain'", "losses(outputs, labels)", "the whole batch"),
    ),
    Bad(
        "a loss of other names",
        at("pretrain", objective=lambda a, b: nn.functional.cross_entropy(a, b, reduction="none")),
        ("'pretrain', examples 0 to 1", "TypeError", "called as losses(model, batch)", "float64 [2, 4], int64 [2]"),
        DataError,
    ),
    Bad(
        "a loss and more",
        at("pretrain", objective=lambda model, batch: (sound(model, batch), model(batch[0]))),
        ("'pretrain'", "got a tuple (float64 [", "return the losses alone"),
        DataError,
    ),
    Bad(
        "how often the model is right",
        at("pretrain", objective=lambda model, batch: model(batch[0]).argmax(dim=1) == batch[1]),
        ("'pretrain'", "the losses are bool", "return the loss that was trained"),
        DataError,
    ),
    Bad(
        "Gauss-Newton of a plain loss",
        at("finetune", objective=sound),
        ("'finetune'", "GaussNewton", "outputs(model, batch)", "use Hessian()"),
    ),
    Bad(
        "Gauss-Newton of a plain loss, before",
        at("pretrain", objective=sound),
        ("'pretrain'", "GaussNewton", "outputs(model, batch)", "use Hessian()"),
    ),
]


@pytest.mark.parametrize("bad", TABLE, ids=lambda bad: bad.what)
def test_a_loss_is_refused_in_one_line_and_nothing_is_written(bad: Bad, tmp_path: Path):
    refused(bad, tmp_path / "out")

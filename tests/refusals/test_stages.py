"""A stage that cannot be one is refused, and so is a chain of what is no stage."""

from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from stagetrace import Chain, Frozen, Proximal, Stage
from stagetrace.errors import DescriptionError
from stagetrace.objectives import Classification
from tests.refusals.described import Bad, Described, at, model_of, named, refused


def all_kept(described: Described) -> None:
    described.finetune |= {"model": deepcopy(described.pretrain["model"]), "link": Frozen("")}


def freeze(model: nn.Module) -> None:
    model.requires_grad_(False)


def diverged(model: nn.Module) -> None:
    model.get_parameter("head.weight").data[0] = torch.nan


TABLE = [
    Bad(
        "no trainable parameters",
        model_of("pretrain", freeze),
        ("'pretrain'", "trained nothing", "requires_grad_(True)"),
    ),
    Bad(
        "nothing left to train",
        all_kept,
        ("'finetune'", "trained nothing", "4 of its parameters are kept", "requires_grad_(True)"),
    ),
    Bad("two stages of one name", named("tune", "tune"), ("'tune'", "give each its own")),
    Bad("a name that is no folder", named("../pretrain", "finetune"), ("'../pretrain'", "letters, digits")),
    Bad(
        "negative weight decay", at("finetune", weight_decay=-0.1), ("'finetune'", "weight_decay", "at least 0", "-0.1")
    ),
    Bad("no batch", at("finetune", batch_size=0), ("'finetune'", "batch_size", "at least 1", "0")),
    Bad("fewer than no workers", at("finetune", workers=-1), ("'finetune'", "workers", "at least 0", "-1")),
    Bad(
        "weights that are no numbers",
        model_of("finetune", diverged),
        ("'finetune'", "NaN", "'head.weight'", "checkpoint"),
    ),
    Bad(
        "a weight beyond all numbers",
        model_of("finetune", lambda m: m.get_parameter("head.bias").data[:1].fill_(torch.inf)),
        ("'finetune'", "1 of", "infinite", "'head.bias'"),
    ),
    Bad(
        "negative alpha",
        lambda d: at("finetune", link=Proximal("embedding", alpha=-1.0))(d),
        ("Proximal(alpha=...)", "positive number", "-1.0"),
    ),
    Bad(
        "no alpha",
        lambda d: at("finetune", link=Proximal("embedding", alpha=0))(d),
        ("Proximal(alpha=...)", "positive number or 'auto'"),
    ),
    Bad(
        "alpha from no movement",
        at("finetune", link=Proximal("embedding", alpha="auto")),
        ("'finetune'", "did not move", "give a number"),
    ),
    Bad(
        "a loss in a module",
        at("pretrain", objective=nn.CrossEntropyLoss()),
        ("'pretrain'", "CrossEntropyLoss", "stagetrace.objectives"),
    ),
    Bad(
        "a class of a loss", at("pretrain", objective=Classification), ("'pretrain'", "Classification()", "parentheses")
    ),
]


@pytest.mark.parametrize("bad", TABLE, ids=lambda bad: bad.what)
def test_a_stage_is_refused_in_one_line_and_nothing_is_written(bad: Bad, tmp_path: Path):
    refused(bad, tmp_path / "out")


@pytest.mark.parametrize(
    ("stages", "says"),
    [
        (lambda one: ([one],), r"argument 1 of Chain is list; write Chain\(\*stages\)"),
        (lambda one: (one, Stage), r"argument 2 of Chain is the class Stage; write Chain\(pretrain, finetune\)"),
        (lambda one: (one.model,), "argument 1 of Chain is Net"),
    ],
    ids=["list", "class", "model"],
)
def test_a_chain_is_made_of_stages(stages: Callable[[Stage], Any], says: str):
    with pytest.raises(DescriptionError, match=says):
        Chain(*stages(Stage("pretrain", **Described().pretrain)))

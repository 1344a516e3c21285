"""A link that does not fit the two stages is refused."""

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from stagetrace import Frozen, Proximal
from stagetrace.errors import DescriptionError
from tests.jobs import examples
from tests.refusals.described import Bad, Described, at, both, model_of, refused


def two_blocks(model: nn.Module) -> None:
    """Put a layer under the embedding that the other stage does not have."""
    model.get_submodule("embedding").register_parameter("scale", nn.Parameter(torch.ones(3, dtype=torch.float64)))


def integer_embedding(model: nn.Module) -> None:
    layer = model.get_submodule("embedding")
    layer.weight = nn.Parameter(torch.ones(3, 4, dtype=torch.int64), requires_grad=False)


def wider(model: nn.Module) -> None:
    model.embedding = nn.Linear(4, 5).double()


def shift(model: nn.Module) -> None:
    with torch.no_grad():
        model.get_parameter("embedding.bias")[1] += 0.5


TABLE = [
    Bad(
        "shapes that differ",
        model_of("finetune", wider),
        ("'finetune'", "'embedding.weight'", "[5, 4]", "[3, 4]", "share only"),
    ),
    Bad(
        "unknown prefix here",
        at("finetune", link=Frozen({"body": "embedding"})),
        ("'finetune'", "'body'", "it has 'embedding.weight'"),
    ),
    Bad(
        "unknown prefix before",
        at("finetune", link=Frozen({"embedding": "body"})),
        ("'finetune'", "previous stage", "'body'", "it has 'embedding.weight'"),
    ),
    Bad("half a name", at("finetune", link=Frozen("embed")), ("'finetune'", "'embed'", "it has 'embedding.weight'")),
    Bad(
        "no counterpart",
        model_of("finetune", two_blocks),
        ("'finetune'", "'embedding.scale'", "no counterpart", "more narrowly"),
    ),
    Bad(
        "kept values that differ",
        model_of("finetune", shift),
        ("'finetune'", "'embedding.bias'", "'pretrain'", "0.5", "link=Proximal", "load the checkpoint"),
    ),
    Bad(
        "shared with two",
        at("finetune", link=Frozen({"": "", "embedding.bias": "head.bias"})),
        ("'finetune'", "'embedding.bias'", "only one"),
    ),
    Bad("nothing shared", lambda d: at("finetune", link=Frozen({}))(d), ("Frozen", "name at least one")),
    Bad(
        "a link on the first stage",
        at("pretrain", link=Frozen("embedding")),
        ("'pretrain'", "first of the chain", "remove its link="),
    ),
    Bad(
        "no link on a later one",
        at("finetune", link=None),
        ("'finetune'", "'pretrain'", "link=Frozen(...)", "link=Proximal(...)"),
    ),
    Bad(
        "integer parameters",
        both(model_of("pretrain", integer_embedding), model_of("finetune", integer_embedding)),
        ("'finetune'", "'embedding.weight'", "int64", "leave it out of the link"),
    ),
]


@pytest.mark.parametrize("bad", TABLE, ids=lambda bad: bad.what)
def test_a_link_is_refused_in_one_line_and_nothing_is_written(bad: Bad, tmp_path: Path):
    refused(bad, tmp_path / "out")


def test_alpha_of_a_stage_that_does_not_pull_back(tmp_path: Path):
    """Downhill of its start, a stage that stopped early was held back; uphill, it was not."""
    described = Described()
    start = described.pretrain["model"]
    model = deepcopy(start)
    nn.functional.cross_entropy(model(examples(40, 1).tensors[0]), examples(40, 1).tensors[1]).backward()
    with torch.no_grad():
        for p in model.parameters():
            p.sub_(p.grad, alpha=1e-2)
    link = Proximal({"embedding": "embedding"}, alpha="auto")
    described.finetune |= {"model": model, "link": link}
    described.trace()
    with torch.no_grad():
        for p, q in zip(model.parameters(), start.parameters(), strict=True):
            p.copy_(2 * q - p)
    with pytest.raises(DescriptionError, match=r"'finetune'.*alpha='auto' estimates -.*give a number, alpha=0.01"):
        described.trace(tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("shared", [1, None, nn.Linear(1, 1)])
def test_what_names_nothing_is_refused(shared: Any):
    with pytest.raises(DescriptionError, match=r"Frozen: shared must be a name"):
        Frozen(shared)


def test_a_stage_that_overwrote_the_one_before_is_refused():
    described = Described()
    described.finetune |= {"model": described.pretrain["model"], "link": Proximal("embedding", alpha=0.1)}
    with pytest.raises(DescriptionError, match=r"'embedding\.weight' was trained further, but it is the very tensor"):
        described.trace()

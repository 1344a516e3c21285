"""Models of images and texts by contrast: a fixed group of pairs is an example, and the towers are shared by name."""

from typing import Any

import pytest
import torch
from torch import Tensor

from stagetrace import Chain, Frozen, Identity, Stage, hf, trace
from stagetrace.errors import DescriptionError
from stagetrace.objectives import Grouped
from tests.hf.modal import tiny

TOWER: dict[str, Any] = {
    "hidden_size": 4,
    "num_hidden_layers": 1,
    "num_attention_heads": 1,
    "intermediate_size": 4,
}
TOWERS: dict[str, Any] = {
    "text_config": {**TOWER, "vocab_size": 8, "max_position_embeddings": 8, "eos_token_id": 7},
    "vision_config": {**TOWER, "image_size": 4, "patch_size": 2},
    "projection_dim": 4,
}
DRAWN = torch.Generator().manual_seed(0)
PAIRS = [
    {
        "input_ids": torch.randint(1, 7, (4,), generator=DRAWN),
        "attention_mask": torch.ones(4, dtype=torch.long),
        "pixel_values": torch.randn(3, 4, 4, generator=DRAWN),
    }
    for _ in range(6)
]


def by_contrast(model: Any, groups: dict[str, Tensor]) -> Tensor:
    each = [{name: value[place] for name, value in groups.items()} for place in range(len(groups["input_ids"]))]
    return torch.stack([model(**group, return_loss=True).loss for group in each])


def clip() -> Any:
    return tiny.made("CLIPModel", tiny.config("CLIP", **TOWERS)).double()


@pytest.mark.filterwarnings("ignore::stagetrace.errors.StagetraceWarning")
def test_groups_are_examples_and_the_vision_tower_is_shared():
    model = clip()
    pretrain = Stage("pretrain", model=model, objective=by_contrast, data=Grouped(PAIRS, 3))
    head = tiny.made("CLIPForImageClassification", tiny.config("CLIP", **TOWERS, num_labels=2)).double()
    head.vision_model.load_state_dict(model.vision_model.state_dict())
    rows = [{"pixel_values": pair["pixel_values"], "label": place % 2} for place, pair in enumerate(PAIRS)]
    finetune = hf.stage("finetune", head, rows, after=pretrain)
    assert isinstance(finetune.link, Frozen)
    names = {name for name, _ in head.named_parameters() if name.startswith("vision_model.")}
    assert finetune.link.pairs == {name: name for name in names}
    found = trace(Chain(pretrain, finetune), hf.query(rows[:2], stage=finetune), curvature=Identity())
    assert bool((found["pretrain"].values != 0).all())


def test_pairs_alone_have_no_loss_and_the_message_says_what_has():
    with pytest.raises(DescriptionError, match=r"CLIPModel tells each pair.*data=Grouped\(rows, size\)"):
        hf.stage("s", clip(), PAIRS)

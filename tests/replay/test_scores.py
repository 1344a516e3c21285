"""The derivative through recorded training, against the same training really run again with other weights."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from stagetrace import trace
from tests.cases import slow_but
from tests.replay.runs import Net, Run, Stages

Adam, AdamW, SGD, RMSprop = torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD, torch.optim.RMSprop

CASES = {
    "sgd": Stages((Run(partial(SGD, lr=0.1)), Run(partial(SGD, lr=0.1, weight_decay=0.1))), (12, 10)),
    "nesterov-then-kept": Stages(
        (Run(partial(SGD, lr=0.05, momentum=0.9, nesterov=True)), Run(partial(Adam, lr=0.02), freezes=True)), (12, 10)
    ),
    "adam-clipped-accumulated": Stages(
        (
            Run(partial(Adam, lr=0.02, weight_decay=0.01), clip=0.3, accumulate=2, epochs=4),
            Run(partial(AdamW, lr=0.02, weight_decay=0.1), clip=0.3, schedule=True),
        ),
        (12, 10),
    ),
    "dropout-groups": Stages(
        (
            Run(partial(AdamW, lr=0.01), dropout=0.2, split=True, schedule=True),
            Run(partial(RMSprop, lr=0.01, momentum=0.5), dropout=0.2),
        ),
        (12, 10),
    ),
    "thawed-midway": Stages(
        (Run(partial(SGD, lr=0.1, momentum=0.5), thaws=4), Run(partial(Adam, lr=0.02, eps=1e-4), thaws=2)), (12, 10)
    ),
    "three-stages": Stages(
        (
            Run(partial(Adam, lr=0.02)),
            Run(partial(SGD, lr=0.05, momentum=0.5)),
            Run(partial(AdamW, lr=0.02), freezes=True),
        ),
        (10, 8, 8),
    ),
}


@pytest.mark.parametrize("case", slow_but(CASES, "three-stages", "dropout-groups", "adam-clipped-accumulated"))
def test_scores_are_the_slopes_of_training_again(case: str, tmp_path: Path):
    stages = CASES[case]
    result = trace(stages.chain(tmp_path), stages.query())
    for stage, examples in enumerate(stages.examples):
        scores = result[f"stage{stage}"].values
        for example in (0, examples - 1):
            slope = stages.slope(stage, example)
            assert torch.allclose(scores[:, example], slope, rtol=0, atol=1e-6 * float(scores.abs().max()))


def test_several_queries_are_each_alone(tmp_path: Path):
    stages = CASES["adam-clipped-accumulated"]
    chain = stages.chain(tmp_path)
    each, mean = trace(chain, stages.query()), trace(chain, stages.query("mean"))
    for name in chain.names:
        torch.testing.assert_close(each[name].values.mean(dim=0), mean[name].values, rtol=1e-10, atol=1e-12)


def test_the_parts_of_a_score_add_up(tmp_path: Path):
    stages = CASES["sgd"]
    chain = stages.chain(tmp_path)
    whole, parts = trace(chain, stages.query("mean")), trace(chain, stages.query("mean"), parts=True)
    for name in chain.names:
        found = parts[name]
        assert found.via_shared is not None
        assert found.via_head is not None
        assert bool(found.via_head.any())
        torch.testing.assert_close(found.via_shared + found.via_head, whole[name].values, rtol=1e-10, atol=1e-12)


def test_scores_do_not_depend_on_the_memory_for_states(tmp_path: Path):
    """Blocks of up to 5 steps, with room for all of their states and for two of them."""
    chain = CASES["adam-clipped-accumulated"].chain(tmp_path)
    query = CASES["adam-clipped-accumulated"].query("mean")
    roomy = trace(chain, query)
    for link in (stage.link for stage in chain.stages):
        object.__setattr__(link, "memory", 1)
    tight = trace(chain, query)
    for name in chain.names:
        assert torch.equal(roomy[name].values, tight[name].values)


class Holding(Run):
    """An optimiser that is given all parameters, also those that it never moves."""

    def groups(self, model: Net) -> list[Any]:
        return list(model.parameters())


def test_what_the_optimiser_held_without_moving_it_is_kept_all_the_same(tmp_path: Path):
    first, optimizer = Run(partial(SGD, lr=0.1)), partial(SGD, lr=0.1)
    chains = [Stages((first, kind(optimizer, freezes=True)), (12, 10)) for kind in (Run, Holding)]
    found = [trace(each.chain(tmp_path / str(place)), each.query()) for place, each in enumerate(chains)]
    assert bool(found[0]["stage0"].values.any())
    for name in ("stage0", "stage1"):
        torch.testing.assert_close(found[1][name].values, found[0][name].values, rtol=1e-12, atol=1e-14)

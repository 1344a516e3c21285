"""Running statistics in a stage that is differentiated through its recorded training, and other buffers that move."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from stagetrace import Chain, Frozen, Query, trace
from stagetrace.errors import DescriptionError
from stagetrace.stages.coverage import Coverage, notices_at
from stagetrace.stages.gradient import Gradient
from tests.replay.runs import FEATURES, WIDTH, Run, Stages

Norm = Callable[[int], nn.Module]


def flat(norm: Norm) -> nn.Module:
    """A layer with a norm. No bias is in front of it: its gradient would be nothing but rounding."""
    return nn.Sequential(nn.Linear(FEATURES, WIDTH, bias=False), norm(WIDTH), nn.Tanh())


def image(norm: Norm) -> nn.Module:
    """The same of a convolution."""
    seen = nn.Unflatten(1, (1, 2, 2)), nn.Conv2d(1, 3, 2, padding=1, bias=False), norm(3), nn.Tanh()
    return nn.Sequential(*seen, nn.Flatten(), nn.Linear(27, WIDTH), nn.Tanh())


def stages(body: Callable[[], nn.Module], **second: Any) -> Stages:
    """Adam with its epsilon large enough that no step is made of rounding; the second stage as said."""
    run = partial(Run, partial(torch.optim.Adam, lr=0.03, eps=1e-2), batch=6, epochs=3, body=body)
    return Stages((run(), run(**second)), (12, 12))


CASES = {
    "moved": stages(lambda: flat(partial(nn.BatchNorm1d, momentum=0.1)), accumulate=2, epochs=4),
    "moved-cumulative": stages(lambda: flat(partial(nn.BatchNorm1d, momentum=None, affine=False))),
    "moved-image": stages(lambda: image(nn.BatchNorm2d)),
    "moved-at-rest": stages(lambda: flat(partial(nn.BatchNorm1d, momentum=0.01)), rests="body"),
    "moved-in-eval-mode": stages(lambda: image(nn.BatchNorm2d), rests=""),
    "kept": stages(lambda: image(partial(nn.BatchNorm2d, momentum=0.3, affine=False)), freezes=True, accumulate=2),
    "kept-at-rest": stages(lambda: flat(partial(nn.BatchNorm1d, momentum=None)), freezes=True, rests="body"),
}

QUICK = {"moved", "moved-image", "kept-at-rest"}
"""The others take long."""


def off(stages: Stages, scores: Tensor, stage: int, example: int) -> float:
    """How far the scores `[queries]` of an example are from those of training again, relative to the largest."""
    slope = stages.slope(stage, example)
    return float((scores[:, example] - slope).abs().max() / slope.abs().max())


@pytest.mark.parametrize("case", [pytest.param(k, marks=[pytest.mark.slow] * (k not in QUICK)) for k in CASES])
def test_scores_are_the_slopes_of_training_again(case: str, tmp_path: Path):
    stages = CASES[case]
    result = trace(stages.chain(tmp_path), stages.query())
    for stage, example in ((0, 0), (0, 7), (1, 11)):
        assert off(stages, result[f"stage{stage}"].values, stage, example) < 1e-6


@pytest.mark.parametrize("case", ["moved", "kept-at-rest"])
def test_statistics_that_are_left_out_are_missed(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """What the test above would see if the query's slope in the running statistics were forgotten."""
    whole = Query.gradient

    def without(query: Query, *arguments: Any) -> Gradient:
        found = whole(query, *arguments)
        return Gradient(found.trained, found.inherited, torch.zeros_like(found.statistics))

    monkeypatch.setattr(Query, "gradient", without)
    stages = CASES[case]
    scores = trace(stages.chain(tmp_path), stages.query())["stage0"].values
    assert off(stages, scores, 0, 0) > 0.03


def test_notes_say_what_a_score_leaves_in_the_batch(tmp_path: Path):
    stages = CASES["moved-at-rest"]
    result = trace(stages.chain(tmp_path), stages.query("mean"))
    said = {name: [note for note in solution.notes if "batch" in note] for name, solution in result.solutions.items()}
    (note,) = said["stage0"]
    assert note.startswith("'body.1' normalised by the batch: an example's score is of its loss alone")
    assert said["stage1"] == []


def test_statistics_that_began_anew_are_constants(tmp_path: Path):
    """Only parameters were taken over: the statistics are again those of a new layer."""

    def reset(model: nn.Module) -> None:
        norm = model.get_submodule("body.1")
        assert isinstance(norm, nn.BatchNorm1d)
        norm.reset_running_stats()

    stages = CASES["moved"]
    fresh = Stages(tuple(replace(run, first=reset) for run in stages.runs), stages.examples)
    result = trace(fresh.chain(tmp_path), fresh.query())
    assert off(fresh, result["stage0"].values, 0, 3) < 1e-6
    assert "the running statistics of 'body.1' began at other values than 'stage0' left" in (
        result.solutions["stage1"].notes
    )


class Doubled(nn.BatchNorm1d):
    """A layer of one's own."""

    def forward(self, input: Tensor) -> Tensor:
        return 2 * super().forward(input)


OTHERS: dict[str, Norm] = {
    "_SpectralNorm": lambda size: spectral_norm(nn.Linear(size, size)),
    "InstanceNorm1d": lambda size: nn.Sequential(
        nn.Unflatten(1, (size, 1)),
        nn.ConstantPad1d((0, 1), 0.5),
        nn.InstanceNorm1d(size, track_running_stats=True),
        nn.Flatten(),
        nn.Linear(2 * size, size),
    ),
    "SyncBatchNorm": nn.SyncBatchNorm,
    "Doubled": Doubled,
}


@pytest.mark.parametrize("kind", OTHERS)
def test_other_buffers_that_training_moved_are_refused_by_name(kind: str, tmp_path: Path):
    stages = Stages((replace(CASES["moved"].runs[0], body=lambda: flat(OTHERS[kind])),), (12,))
    with pytest.raises(DescriptionError, match=rf"training moved buffers of 'body.1.*\({kind}\), which"):
        trace(stages.chain(tmp_path), stages.query())


def test_a_model_that_was_called_in_training_mode_afterwards_is_refused(tmp_path: Path):
    stages = CASES["moved"]
    chain = stages.chain(tmp_path)
    model = chain.stages[1].model
    model.train()(torch.ones(4, FEATURES).double())
    model.eval()
    with pytest.raises(DescriptionError, match=r"statistics of 'body.1' are not those in which the recording ended"):
        trace(chain, stages.query())


@pytest.mark.parametrize("recorded", [0, 1])
def test_statistics_between_a_recorded_stage_and_another_are_said_to_be_left_out(recorded: int, tmp_path: Path):
    chain = CASES["kept-at-rest"].chain(tmp_path)
    first, last = (
        stage if number == recorded else replace(stage, link=Frozen("body") if number else None)
        for number, stage in enumerate(chain.stages)
    )
    (notice,) = notices_at(Chain(first, last).last)
    assert (
        f"and that of 'stage{1 - recorded}' was not, so what examples of 'stage0' did to those of 'body.1' is" in notice
    )
    assert notices_at(chain.last) == []


def test_coverage_counts_followed_statistics_among_no_constants(tmp_path: Path):
    chain = CASES["kept"].chain(tmp_path)
    assert Coverage.of(chain.last).buffers == ()
    assert Coverage.of(Chain(replace(chain.stages[0], link=None)).last).buffers != ()


def test_the_parts_of_a_score_add_up(tmp_path: Path):
    stages = CASES["moved"]
    chain = stages.chain(tmp_path)
    whole, parts = trace(chain, stages.query("mean")), trace(chain, stages.query("mean"), parts=True)
    for name in chain.names:
        found = parts[name]
        assert found.via_shared is not None
        assert found.via_head is not None
        torch.testing.assert_close(found.via_shared + found.via_head, whole[name].values, rtol=1e-9, atol=1e-12)

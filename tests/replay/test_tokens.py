"""Scores of tokens through recorded steps: against trainings run again with another weight on one token's loss."""

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stagetrace import Chain, Query, Recording, Stage, Trace, Unrolled, trace
from stagetrace.objectives import NextToken

WORDS, LENGTH, EXAMPLES = 5, 6, 7
DRAWN = torch.Generator().manual_seed(0)
TEXTS = torch.randint(WORDS, (EXAMPLES, LENGTH), generator=DRAWN)
ASKED = torch.randint(WORDS, (3, LENGTH), generator=DRAWN)
BATCHES = ((0, 3, 5, 1), (2, 6, 4, 0), (3, 1, 6, 2), (5, 0, 4, 3))
"""Two steps of two batches each; some examples are in several."""


class Words(nn.Module):
    """Logits of the next token by the last one, through units that are dropped at random."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.out = nn.Embedding(WORDS, 3), nn.Linear(3, WORDS)
        self.double()

    def forward(self, tokens: Tensor) -> Tensor:
        return self.out(F.dropout(self.embed(tokens).tanh(), 0.3, self.training))


def trained(weights: Tensor, folder: Path | None = None) -> Words:
    """AdamW, clipped, two batches a step, each divided by its tokens; weights: `[examples, length - 1]`."""
    torch.manual_seed(3)
    model = Words().train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05, weight_decay=0.1)
    with nullcontext() if folder is None else Recording(folder, model, optimizer) as recording:
        for place, ids in enumerate(BATCHES):
            batch = TEXTS[list(ids)]
            with nullcontext() if recording is None else recording.batch(ids, batch):
                losses = F.cross_entropy(model(batch)[:, :-1].mT, batch[:, 1:], reduction="none")
                (losses * weights[list(ids)]).sum().div(2 * losses.numel()).backward()
                if place % 2:
                    nn.utils.clip_grad_norm_(model.parameters(), 0.4)
                    optimizer.step()
                    optimizer.zero_grad()
    return model.eval()


def asked(model: Words) -> Tensor:
    """The loss of each query example."""
    with torch.no_grad():
        return F.cross_entropy(model(ASKED)[:, :-1].mT, ASKED[:, 1:], reduction="none").mean(dim=1)


def traced(folder: Path, out: Path | None = None, **settings: Any) -> Trace:
    ones = torch.ones(EXAMPLES, LENGTH - 1, dtype=torch.float64)
    model = trained(ones, None if folder.exists() else folder)
    link = Unrolled(recording=folder)
    stage = Stage("fit", model=model, objective=NextToken("sum"), data=TEXTS, link=link, batch_size=3)
    query = Query(ASKED, objective=NextToken(), reduction=settings.pop("reduction", "mean"))
    return trace(Chain(stage), query, out=out, **settings)


def test_they_are_the_slopes_of_training_again_and_sum_to_the_example_s(tmp_path: Path):
    found = traced(tmp_path / "steps", tokens=True, reduction="none")
    ones, h = torch.ones(EXAMPLES, LENGTH - 1, dtype=torch.float64), 1e-5
    plain = traced(tmp_path / "steps", reduction="none")
    torch.testing.assert_close(found["fit"].values, plain["fit"].values, rtol=1e-6, atol=1e-7)
    for index in range(EXAMPLES):
        tokens = found.tokens["fit"][index]
        assert tokens.positions.tolist() == [1, 2, 3, 4, 5]
        assert tokens.tokens.tolist() == TEXTS[index, 1:].tolist()
        torch.testing.assert_close(
            tokens.values.double().sum(dim=-1), plain["fit"].values[:, index].double(), rtol=1e-6, atol=1e-6
        )
        for place in (0, 3) if index in (0, 2) else ():
            step = torch.zeros_like(ones)
            step[index, place] = h
            slope = (asked(trained(ones + step)) - asked(trained(ones - step))) / (2 * h)
            torch.testing.assert_close(
                tokens.values[:, place].double(), EXAMPLES * slope, rtol=1e-4, atol=1e-6 * float(slope.abs().max())
            )


def test_parts_add_up_and_a_run_that_goes_on_has_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    whole = traced(tmp_path / "steps", tokens=9).tokens["fit"]
    parts = traced(tmp_path / "steps", tokens=9, parts=True).tokens["fit"]
    torch.testing.assert_close(parts.values, whole.values, rtol=1e-5, atol=1e-7)

    def killed(*given: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("stagetrace.tracing.token_files.TokenFiles.keep", killed)
        with pytest.raises(KeyboardInterrupt):  # after the walk back, whose solution is kept
            traced(tmp_path / "steps", tmp_path / "run", tokens=9)
    again = traced(tmp_path / "steps", tmp_path / "run", tokens=9).tokens["fit"]
    assert torch.equal(again.values, whole.values)
    assert torch.equal(Trace.load(tmp_path / "run").tokens["fit"].values, whole.values)

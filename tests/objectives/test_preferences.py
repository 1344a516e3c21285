"""DPO and reward losses: the formulas, the reference as a part of the derivative, and what is refused."""

import copy
import math
import warnings
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from stagetrace import Chain, GaussNewton, Hessian, Lanczos, Proximal, Query, Recording, Stage, Unrolled, trace
from stagetrace.errors import BatchError, DataError, DescriptionError, StagetraceWarning
from stagetrace.objectives import DPO, NextToken, Reward
from stagetrace.stages.coverage import notices_at
from tests.objectives import preferences as of

pytestmark = pytest.mark.filterwarnings("ignore::stagetrace.errors.CurvatureWarning")

TEXTS, PAIRS, ASKED = of.texts(9, 1), of.pairs(8, 2), of.texts(2, 3)


def chain(tables: tuple[Tensor, Tensor], objective: Any, pairs: Any = PAIRS, **settings: Any) -> Chain:
    first = Stage("sft", model=of.Table(tables[0]), objective=NextToken(), data=TEXTS, weight_decay=of.DECAY)
    loss: Any = objective(first) if callable(objective) else objective
    link = Proximal({"table": "table"}, alpha=of.ALPHA)
    second = Stage(
        "dpo", model=of.Table(tables[1]), objective=loss, data=pairs, link=link, weight_decay=of.DECAY, **settings
    )
    return Chain(first, second)


def again(tables: tuple[Tensor, Tensor], place: int, extra: float, *, follows: bool) -> Tensor:
    """The DPO table after both trainings, with one example of `extra` more weight in the loss of the first."""
    weights = torch.ones(len(TEXTS), dtype=torch.float64)
    weights[place] += extra * len(TEXTS)
    first = of.sft(TEXTS, weights, tables[0])
    return of.dpo(PAIRS, first, first if follows else tables[0], tables[1])


def asked(table: Tensor) -> Tensor:
    return torch.stack([of.sft_loss(table, row) for row in ASKED]).mean()


@pytest.fixture(scope="module")
def tables() -> tuple[Tensor, Tensor]:
    first = of.sft(TEXTS, torch.ones(len(TEXTS), dtype=torch.float64))
    return first, of.dpo(PAIRS, first, first)


@pytest.mark.parametrize("follows", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_both_stages_solved_again_with_an_example_of_another_weight(follows: bool, tables: tuple[Tensor, Tensor]):
    """Where the reference is the stage before, the derivative goes through it; else it is held, and that is said."""
    columns = [{**row, **_reference(tables[0], row)} for row in PAIRS]
    made = (
        chain(tables, lambda first: DPO(of.BETA, reference=first)) if follows else chain(tables, DPO(of.BETA), columns)
    )
    said = [text for text in notices_at(made["dpo"]) if "held fixed" in text]
    assert bool(said) is not follows
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*held fixed", category=StagetraceWarning)
        query = Query(ASKED, objective=NextToken())
        found = trace(made, query, curvature=Hessian(), solver=Lanczos(damping=0.0, rtol=1e-12))["sft"].values
    for place in (0, 4):
        more, less = (asked(again(tables, place, extra, follows=follows)) for extra in (1e-4, -1e-4))
        assert float(found[place]) == pytest.approx(float(more - less) / 2e-4, rel=1e-6)


def _reference(table: Tensor, row: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"ref_{side}_logps": of.logp(table, row, side) for side in ("chosen", "rejected")}


def test_recorded_steps_of_both_stages_run_again_with_an_example_of_another_weight(tmp_path: Path):
    """The derivative through the steps of DPO has the reference's part, too."""

    def run(folder: Path | None, extra: float) -> tuple[of.Table, of.Table]:
        start = torch.zeros(of.SIZE, of.SIZE, dtype=torch.float64)
        first, made = of.Table(start), Stage("s", model=of.Table(start), objective=NextToken(), data=TEXTS)
        weights = torch.ones(len(TEXTS), dtype=torch.float64)
        weights[2] += extra
        _steps(first, lambda model, batch: NextToken().losses(model(**batch), batch), made, weights, folder, "sft")
        second, reference = copy.deepcopy(first), copy.deepcopy(first)
        made = Stage("d", model=second, objective=DPO(of.BETA, reference=reference), data=PAIRS)

        def losses(model: of.Table, batch: Any) -> Tensor:
            return made.loss.losses(of.logps(model, batch) - of.logps(reference, batch).detach(), batch)

        _steps(second, losses, made, torch.ones(len(PAIRS), dtype=torch.float64), folder, "dpo")
        return first, second

    tables = run(tmp_path, 0.0)
    first = Stage("sft", model=tables[0], objective=NextToken(), data=TEXTS, link=Unrolled(recording=tmp_path / "sft"))
    link = Unrolled({"table": "table"}, tmp_path / "dpo")
    second = Stage("dpo", model=tables[1], objective=DPO(of.BETA, reference=first), data=PAIRS, link=link)
    found = trace(Chain(first, second), Query(ASKED, objective=NextToken()))["sft"].values[2]
    more, less = (asked(run(None, extra)[1].table.weight.detach()) for extra in (1e-4, -1e-4))
    assert float(found) == pytest.approx(float(more - less) / 2e-4 * len(TEXTS), rel=1e-6)


def _steps(model: nn.Module, losses: Any, stage: Stage, weights: Tensor, folder: Path | None, name: str) -> None:
    """Three steps of SGD with momentum, in an order of their own; recorded where there is a folder."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.8, momentum=0.5)
    with nullcontext() if folder is None else Recording(folder / name, model, optimizer) as recording:
        for start in (0, 3, 1):
            ids = [(start + 2 * place) % len(weights) for place in range(4)]
            (batch,) = stage.examples.read([ids])
            with nullcontext() if recording is None else recording.batch(ids, batch.content):
                optimizer.zero_grad()
                (losses(model, batch.content) @ weights[ids] / len(ids)).backward()
                optimizer.step()


MARGIN = 1.5 - (-0.25)
CASES = [
    (DPO(0.4), -math.log(1 / (1 + math.exp(-0.4 * MARGIN)))),
    (
        DPO(0.4, label_smoothing=0.2),
        0.8 * math.log1p(math.exp(-0.4 * MARGIN)) + 0.2 * math.log1p(math.exp(0.4 * MARGIN)),
    ),
    (DPO(0.4, loss_type="ipo"), (1.5 / 2 + 0.25 / 3 - 1 / 0.8) ** 2),
    (DPO(0.4, loss_type="hinge"), 1 - 0.4 * MARGIN),
    (
        DPO(0.4, loss_type="robust", label_smoothing=0.2),
        (0.8 * math.log1p(math.exp(-0.4 * MARGIN)) - 0.2 * math.log1p(math.exp(0.4 * MARGIN))) / 0.6,
    ),
]


@pytest.mark.parametrize(("objective", "expected"), CASES, ids=lambda case: getattr(case, "loss_type", ""))
def test_each_loss_is_its_formula(objective: DPO, expected: float):
    batch = {name: value.unsqueeze(0) for name, value in PAIRS[0].items()}
    batch |= {
        f"{side}_completion_mask": torch.tensor([[0, 0, *[1] * n, *[0] * (4 - n)]])
        for side, n in (("chosen", 2), ("rejected", 3))
    }
    found = objective.losses(torch.tensor([[1.5, -0.25]], dtype=torch.float64), batch)
    assert float(found) == pytest.approx(expected, rel=1e-12)


def test_pairs_and_the_stacks_of_trl_are_the_same(tables: tuple[Tensor, Tensor]):
    model = Stage("d", model=of.Table(tables[1]), objective=DPO(reference=of.Table(tables[0])), data=PAIRS)
    (batch,) = model.examples.read([range(len(PAIRS))])
    names = ("input_ids", "attention_mask", "completion_mask")
    stacked = {name: torch.cat([batch.content[f"{side}_{name}"] for side in ("chosen", "rejected")]) for name in names}
    with torch.no_grad():
        one, other = (model.loss.outputs(model.evaluated, each) for each in (batch.content, stacked))
    expected = [[float(of.logp(t, row, s)) for s in ("chosen", "rejected")] for row in PAIRS for t in tables[::-1]]
    wanted = torch.tensor(expected, dtype=torch.float64)
    torch.testing.assert_close(one, wanted[::2] - wanted[1::2], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


def test_the_reference_is_asked_once_an_example(tables: tuple[Tensor, Tensor]):
    calls = list[int]()

    class Counting(of.Table):
        def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
            calls.append(len(input_ids))
            return super().forward(input_ids, attention_mask)

    made = Stage("d", model=of.Table(tables[1]), objective=DPO(reference=Counting(tables[0])), data=PAIRS, batch_size=3)
    query = Query(ASKED, objective=NextToken())
    for curvature in (GaussNewton(), Hessian()):
        trace(Chain(made), query, curvature=curvature, solver=Lanczos(damping=0.1))
    assert sum(calls) < 8 * len(PAIRS), "a few checks differentiate it or look at it in another precision"


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: DPO(0.0), r"DPO\(beta=...\) must be a number above 0, got 0.0"),
        (lambda: DPO(loss_type="sft"), "must be one of 'sigmoid', 'ipo', 'hinge', 'robust', got 'sft'"),  # pyright: ignore
        (lambda: DPO(label_smoothing=0.5), "above 0 and below 0.5, got 0.5"),
        (lambda: DPO(loss_type="ipo", label_smoothing=0.1), "is of 'sigmoid' and 'robust', not of 'ipo'"),
        (lambda: Reward(-1.0), r"Reward\(center=...\) must be a number above 0, got -1.0"),
        (lambda: _stage(DPO(reference="sft")), "must be a Stage or a model, got the string 'sft'"),
        (lambda: _stage(DPO(reference=3)), "must be a Stage or a torch.nn.Module, got int"),
    ],
)
def test_what_is_no_objective_is_refused(make: Any, says: str):
    with pytest.raises(DescriptionError, match=says):
        make()


def _stage(objective: Any, data: Any = PAIRS) -> Stage:
    return Stage("d", model=of.Table(), objective=objective, data=data)


@pytest.mark.parametrize(
    ("objective", "data", "says"),
    [
        (DPO(), PAIRS, "DPO has no reference: the batch has no 'ref_chosen_logps'.*give DPO.beta, reference=stage"),
        (DPO(reference=of.Table()), TEXTS, "DPO needs"),
        (
            DPO(reference=of.Table()),
            [{**row, "chosen_completion_mask": torch.ones(2)} for row in PAIRS],
            "'completion_mask' of",
        ),
        (
            DPO(reference=of.Table()),
            [{**row, "ref_chosen_logps": -1.0, "ref_rejected_logps": -9.0} for row in PAIRS],
            r"ref_rejected_logps are \[-1.0, -9.0\], but under reference=",
        ),
        (Reward(), PAIRS, "Reward needs one number a text"),
    ],
)
def test_batches_that_do_not_fit_are_refused(objective: Any, data: Any, says: str):
    with pytest.raises((BatchError, DataError), match=says):
        trace(Chain(_stage(objective, data)), Query(ASKED, objective=NextToken()))

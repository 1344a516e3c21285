"""Models whose parameters lie in shards: the scores of the plain model, or a refusal before anything is computed."""

import importlib
import json
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from stagetrace import (
    CG,
    EKFAC,
    Chain,
    Direct,
    Frozen,
    GaussNewton,
    Hessian,
    Lanczos,
    Link,
    Proximal,
    Query,
    Shift,
    Stage,
    trace,
)
from stagetrace.checks.shards import gradient_in_shards
from stagetrace.errors import DescriptionError, DifferentiationError, StagetraceError, StagetraceWarning
from stagetrace.objectives import Classification
from stagetrace.parallel import world
from stagetrace.progress import Silent
from stagetrace.stages.bound import BoundStage
from stagetrace.stages.gradient import mean_gradient
from stagetrace.stages.in_step import in_step
from stagetrace.stages.shards import admitted, differentiating
from stagetrace.stages.shards.gather import REFUSED
from stagetrace.tracing import rank as ranked
from stagetrace.tracing.sharded import ShardedScorer
from tests import jobs
from tests.distributed.forks import Outcome, forked

Shard = Callable[[Any], Any]


@pytest.fixture(scope="module", autouse=True)
def imported() -> None:
    """What each fork would import by itself, which takes seconds."""
    for name in ("torch._dynamo", "torch.distributed.fsdp", "torch.distributed.tensor"):
        importlib.import_module(name)


class Scaled(jobs.Net):
    """With a parameter that is a single number, of which one process has it and the others have nothing."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self.scale = nn.Parameter(torch.tensor(1.5).double())

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * super().forward(x)


def fully(model: Any) -> Any:
    """As `fully_shard` has it, the head by itself: three rows on two processes."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh("cpu", (world().size,))
    fully_shard(model.head, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def partly(model: Any) -> Any:
    """One parameter in rows, one copied, the others plain."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor

    mesh = init_device_mesh("cpu", (world().size,))
    model.head.weight = nn.Parameter(distribute_tensor(model.head.weight.detach(), mesh, [Shard(0)]))
    model.head.bias = nn.Parameter(distribute_tensor(model.head.bias.detach(), mesh, [Replicate()]))
    return model


def whole(model: Any) -> Any:
    return model


def chain(shard: Shard, link: Link, kind: type[jobs.Net] = jobs.Net, examples: int = 7) -> Chain:
    """Two stages of 7 and 5 examples in batches of 3; of 7 the first process has two batches, and the second one."""
    first = kind(0)
    second = jobs.after(first, link, 1)
    described: dict[str, Any] = {"objective": Classification(), "batch_size": 3, "weight_decay": 0.01}
    return Chain(
        Stage("a", model=shard(first), data=jobs.examples(examples, 0), **described),
        Stage("b", model=shard(second), data=jobs.examples(5, 1), link=link, **described),
    )


def query() -> Query:
    return Query(jobs.examples(3, 9), batch_size=2)


def traced(made: Chain, **options: Any) -> dict[str, Tensor]:
    """Every stage's scores and answer, of every process the same."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", StagetraceWarning)
        found = trace(made, query(), **options)
    return {name: found[name].values for name in found} | {f"{n} answer": found.solutions[n].value for n in found}


KEPT, MOVED = Frozen("embedding"), Proximal("embedding", alpha=0.1)
EXACT = {"curvature": Hessian(), "solver": Lanczos(1.0, 1e-3)}
SQUARES = {"curvature": GaussNewton(memory=1), "solver": CG(1.0, 1e-3)}

CASES: dict[str, tuple[Shard, Link, type[jobs.Net], Mapping[str, Any]]] = {
    "kept": (fully, KEPT, jobs.Net, EXACT),
}
SLOW: dict[str, tuple[Shard, Link, type[jobs.Net], Mapping[str, Any]]] = {
    "moved, some in shards": (partly, MOVED, Scaled, SQUARES),
    "two parts": (fully, KEPT, jobs.Net, EXACT | {"parts": True}),
    "by default": (fully, MOVED, jobs.Net, {}),
    "damping from the spectrum": (fully, KEPT, jobs.Net, {"curvature": GaussNewton(examples=4)}),
}


def assert_same(outcome: Outcome, alone: Mapping[str, Tensor]) -> None:
    assert outcome.error is None, outcome.error
    for what, values in alone.items():
        assert bool(values.any())
        torch.testing.assert_close(outcome.value[what], values, rtol=0, atol=1e-10 * float(values.abs().max()))


@pytest.mark.parametrize(
    ("ranks", "cases"),
    [(2, CASES), pytest.param(2, SLOW, marks=pytest.mark.slow), pytest.param(3, CASES | SLOW, marks=pytest.mark.slow)],
    ids=["2", "2, more", "3"],
)
def test_a_model_in_shards_gives_the_scores_of_the_plain_model(ranks: int, cases: Mapping[str, Any], tmp_path: Path):
    """And a run of it is a run of the plain model: its folder is complete for one process."""

    def run(case: str, shard: Shard | None = None) -> dict[str, Tensor]:
        sharded, link, kind, options = cases[case]
        return traced(chain(shard or sharded, link, kind), out=tmp_path / case.replace(" ", "-"), **options)

    outcomes = forked(ranks, lambda rank: {case: run(case) for case in cases})
    for outcome in outcomes:
        assert outcome.error is None, outcome.error
    for case in cases:
        _, link, kind, options = cases[case]
        record = tmp_path / case.replace(" ", "-") / "run.json"
        before = record.read_bytes()
        coverage = json.loads(before)["statistics"]["coverage"]["a"]
        assert coverage["trained"] == sum(p.numel() for p in kind(0).parameters())
        read = run(case, whole)
        assert record.read_bytes() == before
        alone = traced(chain(whole, link, kind), **options)
        for outcome in outcomes:
            assert_same(Outcome(outcome.value[case]), alone)
        assert_same(Outcome(read), alone)


def test_a_graph_keeps_pieces_of_weights_and_not_weights():
    class Wide(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head, self.last = nn.Linear(4, 64), nn.Linear(64, 64)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(torch.tanh(self.head(x))).square()

    def work(rank: int) -> tuple[int, int]:
        data = jobs.examples(2, 0, torch.float32)
        stage = Stage("fit", model=fully(Wide()), objective=Classification(), data=data)
        bound, kept = Chain(stage)["fit"], list[int]()
        with admitted(), differentiating(lambda tensor: kept.append(tensor.untyped_storage().nbytes() // 4)):
            for risk, batch in in_step(bound.risk, range(2)):
                values = {name: value.requires_grad_() for name, value in risk.trained_values.items()}
                with torch.enable_grad():
                    total = risk.losses(values, {}, batch).sum()
                    slopes = torch.autograd.grad(total, list(values.values()), create_graph=True)
                along = torch.stack([slope.square().sum() for slope in slopes]).sum()
                torch.autograd.grad(along, list(values.values()))
        return bound.trained.size, max(kept)

    for outcome in forked(2, work):
        assert outcome.error is None, outcome.error
        held, largest = outcome.value
        assert held == (4 * 64 + 64 + 64 * 64 + 64) // 2
        assert 0 < largest <= 64 * 64 // 2  # what is kept of the larger weight, and its gradient


def test_a_wrong_derivative_is_noticed():
    """By differences of the loss, and where forward mode and autograd are two things, by the scores."""

    class Wrong(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return 2.0 * x

        @staticmethod
        def backward(ctx: Any, slope: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
            return 3.0 * slope

        @staticmethod
        def jvp(ctx: Any, along: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
            return 2.0 * along

    class Net(jobs.Net):
        def forward(self, x: Tensor) -> Any:
            return Wrong.apply(super().forward(x))

    def work(rank: int) -> tuple[str, ...]:
        risks = [chain(fully, KEPT, kind)["a"].risk for kind in (jobs.Net, Net)]
        _, wrong = risks
        with admitted():
            found = [gradient_in_shards(risk, next(iter(risk.read([range(4)]))))[0].name for risk in risks]
            scorer = ShardedScorer(wrong, wrong.trained.zeros(1) + 1.0, parts=False, rows=None)
            with pytest.raises(DifferentiationError) as caught:
                list(scorer.run(lambda _: None, lambda *_: None, Silent()))
        return *found, str(caught.value)

    (outcome,) = forked(1, work)
    assert outcome.error is None, outcome.error
    assert outcome.value[:2] == ("OK", "WARNING")
    assert "forward mode gives another derivative than autograd" in outcome.value[2]


# What is refused, and what ends


def refusal(work: Callable[[], object]) -> str:
    with pytest.raises(DescriptionError) as caught:
        work()
    return str(caught.value)


def in_columns() -> Any:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    model, mesh = jobs.Net(0), init_device_mesh("cpu", (2,))
    model.head.weight = nn.Parameter(distribute_tensor(model.head.weight.detach(), mesh, [Shard(1)]))
    return model


def in_half_precision() -> Any:
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    return fully_shard(jobs.Net(0), mp_policy=MixedPrecisionPolicy(param_dtype=torch.bfloat16))


def recurrent() -> Any:
    from torch.distributed.fsdp import fully_shard

    return fully_shard(nn.GRU(4, 3))


def test_what_is_not_made_for_shards_is_refused():
    def described(model: nn.Module) -> str:
        return refusal(lambda: Stage("fit", model=model, objective=Classification(), data=jobs.examples(5, 0)))

    def work(rank: int) -> list[str]:
        made = chain(fully, KEPT)
        each = Query(jobs.examples(3, 9), reduction="none")
        return [
            refusal(lambda: ranked(made, each, top=2, solver=Lanczos(0.1))),
            refusal(lambda: mean_gradient(made["a"].risk)),
            refusal(lambda: EKFAC(exact=0).operator(made["a"])),
            refusal(lambda: trace(made, query(), curvature=EKFAC(), solver=Direct(0.1, Shift))),
            refusal(lambda: trace(made, query(), curvature=Hessian(), solver=Direct(0.1))),
            refusal(lambda: trace(made, each)),
            refusal(lambda: Chain(made.stages[0], chain(whole, KEPT).stages[1])),
            described(in_columns()),
            described(in_half_precision()),
            described(recurrent()),
        ]

    for outcome in forked(2, work):
        assert outcome.error is None, outcome.error
        *outside, ekfac, direct, several, mixed, columns, half, gru = outcome.value
        assert all(REFUSED in said for said in outside)
        for said, words in ((ekfac, "curvature EKFAC"), (direct, "solver Direct"), (several, "reduction='none'")):
            assert words in said
            assert "a trace takes models in shards" in said
        assert "stage 'b': the parameters of one of this stage and 'a' lie in shards" in mixed
        assert "parameter 'weight' of 'head' lies in shards that are not read" in columns
        assert "was given to fully_shard with mp_policy=" in half
        assert "is a recurrent layer" in gru


def test_what_goes_wrong_on_one_process_ends_all():
    """An example that it alone reads, then a model that takes another way on it: none waits for it."""

    class Routed(jobs.Net):
        def forward(self, x: Tensor) -> Tensor:
            first = bool(x[0, 0] > 0)
            return super().forward(x) if first else self.head(x[:, :3])

    def raised(made: BoundStage) -> str:
        with admitted(), pytest.raises(StagetraceError) as caught:
            mean_gradient(made.risk)
        return f"{type(caught.value).__name__}: {caught.value}"

    def work(rank: int) -> tuple[str, str]:
        infinite = chain(fully, KEPT)
        infinite.stages[0].data.tensors[0][5] = float("inf")
        data = jobs.examples(4, 0)
        data.tensors[0][:, 0] = torch.tensor([1.0, 1.0, -1.0, -1.0])
        routed = Chain(Stage("fit", model=fully(Routed(0)), objective=Classification(), data=data))
        return raised(infinite["a"]), raised(routed["fit"])

    for outcome in forked(2, work, seconds=60.0):
        assert outcome.error is None, outcome.error
        infinite, routed = outcome.value
        assert infinite.startswith("DataError: ")
        assert "the loss of one of the examples 4 to 6 is nan" in infinite
        assert routed.startswith("ProcessError: ")
        assert "putting '" in routed

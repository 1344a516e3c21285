"""`products`: what one product of a stage's curvature with a vector costs, in gradients over the same examples.

The work, counted in multiply-adds m of a layer (a convolution or a matrix product) for a batch:

    forward pass                1 m
    gradient                    3 m     forward, and two products backward; the first layer needs no gradient of
                                        its input: 2 m
    Hessian, linearised         6 m     each of the three products above has a tangent of two terms, W x' + W' x; the
                                        first layer has no x': 2 m. The primal values are kept, not computed again.
    Hessian, retained graph     6 m     the same terms, as the backward pass of a backward pass
    Gauss-Newton, linearised    4 m     forward tangent 2 m, transposed 2 m
    Gauss-Newton, retained graph    5 m     the same, and a forward pass beside the tangent
    without forward mode        4 m     the tangent as the backward pass of a backward pass; of a convolution up to 6 m
    recomputed                  and what the graph takes: 3 m, or 1 m for Gauss-Newton with forward mode

So by multiply-adds a Hessian product is at best 2 gradients on a deep network, less where the first layer weighs much;
`counted` gives the number for the network at hand, by PyTorch's counter of operations. A gradient is
one pass of plain autograd, with its elementwise work and its writing of intermediates; a replayed tangent map writes
fewer, so that the measured ratio can be below the counted one.

Bytes: what a way keeps between products is taken from the growth of the process's resident memory (on a GPU, from the
allocator); the plan's estimate is from what autograd saves for 1 and 8 examples.
"""

import gc
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import grad, jvp, linearize, vmap
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.memory import resident
from benchmarks.report import Report, Row
from benchmarks.setting import Asked, batch_of, large_network, parameters, risk_of, small_network
from benchmarks.timing import Work, in_turn, once
from experiments.tasks import Task
from stagetrace.curvature.mean import MeanCurvature
from stagetrace.curvature.plan import Matrix, Plan, Way, make_plan
from stagetrace.curvature.subset import seeded_subset
from stagetrace.stages.data import Batch
from stagetrace.stages.gradient import batch_gradient
from stagetrace.stages.risk import Risk
from stagetrace.stages.space import Params

NO_FORWARD_MODE = "as if an operation had none"
WAYS: dict[Matrix, dict[str, tuple[Way, str | None]]] = {
    "Hessian": {
        "linearised": ("linearised", None),
        "retained graph": ("retained graph", None),
        "recomputed": ("recomputed reverse", None),
    },
    "GaussNewton": {
        "linearised": ("linearised", None),
        "retained graph": ("retained graph", None),
        "recomputed": ("recomputed forward", None),
        "retained graph, no forward mode": ("retained graph", NO_FORWARD_MODE),
        "recomputed, no forward mode": ("recomputed reverse", NO_FORWARD_MODE),
    },
}
"""What is measured, and how a plan says it."""

TARGET = 1.6
VECTORS = (1, 4, 16)


def run(report: Report) -> None:
    """Both networks, every way, and several vectors at once."""
    asked = report.asked
    task = asked.digits()
    models: dict[str, Callable[[Asked, Task], nn.Module]] = {"small": small_network, "large": large_network}
    for size, make in models.items():
        model = make(asked, task)
        chosen = list(seeded_subset(len(task.train), asked.hessian_examples, asked.seed))
        risk = risk_of(model, task.train.dataset)
        bench = Bench(report, size, model, risk, chosen, batch_of(risk, chosen))
        bench.ways()
        bench.several_vectors()


@final
@dataclass(frozen=True)
class Bench:
    """One network and the examples of its curvature."""

    report: Report
    size: str
    model: nn.Module
    risk: Risk
    indices: list[int]
    batch: Batch

    @property
    def title(self) -> str:
        return f"{parameters(self.model):,} parameters, {len(self.indices):,} examples"

    def ways(self) -> None:
        """Seconds of a product over seconds of a gradient, for every way."""
        vector = torch.randn(self.risk.trained.size, generator=torch.Generator().manual_seed(0)).to(
            self.risk.trained.device
        )
        works: dict[str, Work] = {"gradient": self.gradient, "gradient, by torch.func": self.functional_gradient}
        rows: dict[str, Row] = {}
        matrices: tuple[Matrix, ...] = ("Hessian", "GaussNewton")
        for matrix in matrices:
            estimate = make_plan(self.risk, matrix, self.indices, len(self.indices), 2**40)
            planned = make_plan(self.risk, matrix, self.indices, len(self.indices), 2 * 2**30)
            self.report.fields[f"plan_{self.size}_{matrix}"] = {
                "way_within_2_gib": planned.way,
                "traced_from_products": planned.traced_from,
            }
            self.report.say(f"{self.size}, {matrix}: {planned.way}; traced from product {planned.traced_from} on")
            for words, (way, missing) in WAYS[matrix].items():
                name = f"{matrix}, {words}"
                plan = Plan(matrix, way, len(self.indices), estimate.bytes_per_example, 0, missing)
                operator = MeanCurvature(self.risk, self.indices, plan)
                works[name] = lambda operator=operator: operator @ vector
                rows[name] = self.set_up(plan, vector, estimate.cached_bytes)
        small = self.size == "small"
        times = in_turn(works, self.report.asked.repetitions(9 if small else 3), warmups=1, calls=5 if small else 2)
        base = counted(self.gradient)
        table: list[Row] = []
        for name, time in times.items():
            table.append(
                {
                    "work": name,
                    "ms": 1e3 * time.median,
                    "least ms": 1e3 * time.least,
                    "gradients": time.over(times["gradient"]),
                    "gradients, by least": time.least / times["gradient"].least,
                    "counted": counted(works[name]) / base,
                    **rows.get(name, {}),
                }
            )
        self.report.table(f"Products: {self.title}", table, f"products_{self.size}")
        self.report.target(
            f"linearised Hessian product in gradients ({self.title})",
            times["Hessian, linearised"].over(times["gradient"]),
            TARGET,
        )
        self.break_even({row["work"]: row for row in table})

    def break_even(self, rows: dict[str, Row]) -> None:
        """From how many products on the linearised way has repaid its set-up."""
        fast, slow = rows["Hessian, linearised"], rows["Hessian, retained graph"]
        gain = slow["ms"] - fast["ms"]
        extra = 1e3 * (fast["set-up s"] - slow["set-up s"])
        products = extra / gain if gain > 0 else None
        self.report.fields[f"break_even_products_{self.size}"] = products
        number = "never" if products is None else f"from {products:.0f} products on"
        self.report.say(f"linearised repays its set-up over the kept graph: {number}")

    def several_vectors(self) -> None:
        """The cost per vector of a loop and of one vectorised call."""
        gradient = grad(lambda own: self.risk.losses(own, self.risk.inherited_values, self.batch).sum())
        with warnings.catch_warnings():  # the tracer warns of its own bookkeeping
            warnings.filterwarnings("ignore", message="Attempted to insert a get_attr Node", category=UserWarning)
            _, tangent = linearize(gradient, self.risk.trained_values)

        def recomputed(v: Params) -> Params:
            return jvp(gradient, (self.risk.trained_values,), (v,))[1]

        maps: dict[str, Callable[[Params], Params]] = {"linearised": tangent, "recomputed forward": recomputed}
        table: list[Row] = []
        for name, product in maps.items():
            for k in VECTORS:
                if self.size == "large" and k > 4:
                    continue
                columns = torch.randn(self.risk.trained.size, k, generator=torch.Generator().manual_seed(k))
                columns = columns.to(self.risk.trained.device)
                works = {"loop": self.loop(product, columns), "vmap": self.vmapped(product, columns)}
                times = in_turn(works, self.report.asked.repetitions(7 if self.size == "small" else 3))
                loop, together = times["loop"], times["vmap"]
                table.append(
                    {
                        "way": name,
                        "vectors": k,
                        "loop, ms a vector": 1e3 * loop.median / k,
                        "vmap, ms a vector": 1e3 * together.median / k,
                        "loop, least": 1e3 * loop.least / k,
                        "vmap, least": 1e3 * together.least / k,
                        "vmap over loop": together.over(loop),
                    }
                )
        self.report.table(f"Several vectors at once: {self.title}", table, f"vectors_{self.size}")

    def loop(self, product: Callable[[Params], Params], columns: Tensor) -> Work:
        space = self.risk.trained
        return lambda: [space.flatten(product(space.unflatten(v))) for v in columns.unbind(dim=1)]

    def vmapped(self, product: Callable[[Params], Params], columns: Tensor) -> Work:
        space = self.risk.trained
        return lambda: space.flatten_columns(vmap(product)(space.unflatten_columns(columns)))

    def gradient(self) -> object:
        """The mean loss's gradient by plain autograd: what every cost is counted in."""
        pixels, labels = self.batch.content
        return torch.autograd.grad(F.cross_entropy(self.model(pixels), labels), tuple(self.model.parameters()))

    def functional_gradient(self) -> object:
        """The same as the library computes it: parameters as arguments, the result flat and checked."""
        return batch_gradient(self.risk, self.batch)

    def set_up(self, plan: Plan, vector: Tensor, estimate: int) -> Row:
        """Seconds until a way is ready, and the bytes it keeps; the first call in a process is left out."""
        if not plan.caches:
            return {"set-up s": None}
        column = vector.unsqueeze(1)
        plan.chunk(self.risk, self.batch)
        seconds: list[float] = []
        kept: list[int] = []
        for _ in range(3):
            gc.collect()
            before = resident(self.risk.trained.device)
            chunk: list[Callable[[Tensor], Tensor]] = []
            seconds.append(once(lambda chunk=chunk: chunk.append(plan.chunk(self.risk, self.batch))))
            chunk[0](column)
            gc.collect()
            kept.append(resident(self.risk.trained.device) - before)
            chunk.clear()
        return {
            "set-up s": median(seconds),
            "kept MB": median(kept) / 1e6,
            "planned MB": estimate / 1e6,
        }


def counted(work: Work) -> int:
    """Operations of the convolutions and matrix products in a piece of work, by PyTorch's counter."""
    counter = FlopCounterMode(display=False)
    with counter:
        work()
    return counter.get_total_flops()

"""`scoring`: seconds to score every example, in forward passes over them.

The work, counted in multiply-adds m of a layer, for a batch and k adjoints:

    forward pass                1 m
    forward mode                (1 + 2k) m     the tangent of a layer has two terms, W x' + W' x; the first layer has no
                                               x': (1 + k) m
    per-example gradients       3 m, and k P an example for the product with the adjoints; the first layer 2 m
    layer by layer              the same, without `vmap`: the outputs' gradients, then one product a layer
    one at a time               3 m, in as many calls as there are examples

`counted` gives the numbers for the network at hand, by PyTorch's counter. A forward pass is the plain model and its
losses, without gradients, on the same batches; scoring also checks that all is finite and forms the scores. The
examples are read as slices of tensors, and once more one by one and collated, as from a data set of files: then the
forward pass pays for the reading too.

Memory: forward mode holds a batch's activations and tangents; per-example gradients hold 4 P bytes an example more.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, jvp
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.products import counted
from benchmarks.report import Report, Row
from benchmarks.setting import batch_of, risk_of, small_network
from benchmarks.timing import Work, in_turn
from stagetrace.progress import Silent
from stagetrace.stages.data import Batch
from stagetrace.stages.gradient import batch_gradient
from stagetrace.stages.risk import Risk
from stagetrace.tracing.contract import Way, choose, forward_mode
from stagetrace.tracing.score import Scorer

BATCH_SIZES = (128, 256, 512, 1024, 2048)
DEFAULT = 256
ADJOINTS = (1, 2, 4, 8, 16, 32)
ONE_BY_ONE = 256
TARGET = 3.0
WAYS: dict[str, Way] = {
    "forward mode": "forward mode",
    "layer by layer": "layer by layer",
    "per-example gradients": "per-example gradients",
}


def run(report: Report) -> None:
    """Batch sizes, numbers of adjoints, and where the time goes."""
    asked = report.asked
    task = asked.digits()
    model = small_network(asked, task)
    pixels, labels = task.train.pixels, task.train.labels
    bench = Bench(report, model, pixels, labels, asked.repetitions(7))
    bench.batch_sizes()
    bench.adjoint_numbers()
    bench.breakdown()


@final
@dataclass(frozen=True)
class Bench:
    """The network and the examples to be scored."""

    report: Report
    model: nn.Module
    pixels: Tensor
    labels: Tensor
    repetitions: int

    @property
    def title(self) -> str:
        return f"{len(self.labels):,} examples"

    def risk(self, data: Any, batch_size: int) -> Risk:
        return risk_of(self.model, data, batch_size)

    def adjoints(self, risk: Risk, k: int) -> Tensor:
        generator = torch.Generator().manual_seed(k)
        return torch.randn(risk.trained.size, k, generator=generator).to(risk.trained.device)

    def batch_sizes(self) -> None:
        """One adjoint: each way at each batch size, with cheap and with costly reading."""
        sliced = TensorDataset(self.pixels, self.labels)
        singly = list(zip(self.pixels, self.labels, strict=True))
        table: list[Row] = []
        for size in BATCH_SIZES:
            for reading, data in (("slices", sliced), ("one by one", singly)):
                risk = self.risk(data, size)
                adjoint = self.adjoints(risk, 1)
                works: dict[str, Work] = {"forward pass": self.forward(data, size)}
                works |= {name: self.scored(risk, adjoint, way) for name, way in WAYS.items()}
                times = in_turn(works, self.repetitions)
                for name, time in times.items():
                    table.append(
                        {
                            "batch": size,
                            "reading": reading,
                            "work": name,
                            "s": time.median,
                            "least s": time.least,
                            "forward passes": time.over(times["forward pass"]),
                            "by least": time.least / times["forward pass"].least,
                        }
                    )
        table.append(self.one_at_a_time(sliced))
        self.report.table(f"Scoring, one adjoint: {self.title}", table, "batch_sizes")
        self.report.fields["counted_forward_passes"] = self.counts(self.risk(sliced, DEFAULT))
        self.report.say(f"counted, in forward passes: {self.report.fields['counted_forward_passes']}")
        for reading in ("slices", "one by one"):
            rows = {row["batch"]: row for row in table if row["work"] == "forward mode" and row["reading"] == reading}
            self.report.target(
                f"forward mode in forward passes, batches of {DEFAULT}, read as {reading}",
                rows[DEFAULT]["forward passes"],
                TARGET,
            )

    def one_at_a_time(self, data: TensorDataset) -> Row:
        """A backward pass per example, on a few and extrapolated."""
        few = TensorDataset(*(tensor[:ONE_BY_ONE] for tensor in data.tensors))
        risk = self.risk(few, DEFAULT)
        works = {
            "forward pass": self.forward(data, DEFAULT),
            "one": self.scored(risk, self.adjoints(risk, 1), "one example at a time"),
        }
        times = in_turn(works, 3)
        scale = len(data) / len(few)
        return {
            "batch": DEFAULT,
            "reading": "slices",
            "work": f"one at a time (from {len(few)})",
            "s": times["one"].median * scale,
            "least s": times["one"].least * scale,
            "forward passes": times["one"].over(times["forward pass"]) * scale,
            "by least": times["one"].least / times["forward pass"].least * scale,
        }

    def adjoint_numbers(self) -> None:
        """Several adjoints: what each way takes, which is the fastest, and which one the library takes."""
        data = TensorDataset(self.pixels, self.labels)
        risk = self.risk(data, DEFAULT)
        probe = batch_of(risk, [0, 1])
        forward = self.forward(data, DEFAULT)
        table: list[Row] = []
        for k in ADJOINTS:
            adjoints = self.adjoints(risk, k)
            works: dict[str, Work] = {"forward pass": forward}
            works |= {name: self.scored(risk, adjoints, way) for name, way in WAYS.items()}
            times = in_turn(works, min(3, self.repetitions))
            passes = {name: times[name].over(times["forward pass"]) for name in WAYS}
            table.append(
                {
                    "adjoints": k,
                    **{f"{name}, s": times[name].median for name in WAYS},
                    **{f"{name}, passes": passes[name] for name in WAYS},
                    "fastest": min(passes, key=lambda name: passes[name]),
                    "chosen": choose(risk, probe, k)[0],
                }
            )
        self.report.table(f"Scoring, several adjoints: {self.title}, batches of {DEFAULT}", table, "adjoints")

    def breakdown(self) -> None:
        """What scoring adds to a forward pass, one addition after the other; each row does the work of the one before.

        Batches are slices made beforehand, so that reading is a row of its own.
        """
        data = TensorDataset(self.pixels, self.labels)
        table: list[Row] = []
        for size in (DEFAULT, 1024):
            risk = self.risk(data, size)
            adjoint = self.adjoints(risk, 1)
            batches = list(risk.read(risk.examples.batch_indices()))
            times = in_turn(self.layers(risk, adjoint, batches), self.repetitions)
            first = next(iter(times.values()))
            for name, time in times.items():
                passes = time.over(first)
                table.append(
                    {
                        "batch": size,
                        "work": name,
                        "s": time.median,
                        "least s": time.least,
                        "forward passes": passes,
                        "us a batch": 1e6 * time.median / len(batches),
                    }
                )
        self.report.table(f"Where scoring's time goes: {self.title}", table, "breakdown")

    def layers(self, risk: Risk, adjoint: Tensor, batches: list[Batch]) -> dict[str, Work]:
        """Scoring from the inside out."""
        own, inherited = risk.trained_values, risk.inherited_values
        tangent = risk.trained.unflatten(adjoint[:, 0])

        def each(work: Callable[[Batch], object]) -> Work:
            def all_batches() -> None:
                with torch.no_grad():
                    for batch in batches:
                        work(batch)

            return all_batches

        def plain(batch: Batch) -> Tensor:
            return F.cross_entropy(self.model(batch.content[0]), batch.content[1], reduction="none")

        def bare(batch: Batch) -> object:
            def losses(params: dict[str, Tensor]) -> Tensor:
                outputs = functional_call(self.model, params, (batch.content[0],))
                return F.cross_entropy(outputs, batch.content[1], reduction="none")

            return jvp(losses, (own,), (tangent,))

        scorer = Scorer(risk, adjoint, False, None, "forward mode", "")
        return {
            "forward pass": each(plain),
            "... as a function of parameters": each(lambda batch: risk.losses(own, inherited, batch)),
            "bare jvp": each(bare),
            "forward_mode": each(lambda batch: forward_mode(risk, batch, adjoint)),
            "Scorer.run: reading, checks, parts": lambda: list(
                scorer.run(lambda n: None, lambda n, part: None, Silent())
            ),
        }

    def counts(self, risk: Risk) -> dict[str, float]:
        """Operations of each way over those of a forward pass, for a batch.

        Per-example gradients are counted as those of their sum, which takes the same operations: PyTorch's counter does
        not know the grouped convolutions that `vmap` makes of them.
        """
        batch = batch_of(risk, list(range(DEFAULT)))
        pixels, labels = batch.content
        base = counted(lambda: F.cross_entropy(self.model(pixels), labels))
        adjoint = self.adjoints(risk, 1)
        return {
            "forward mode": counted(lambda: forward_mode(risk, batch, adjoint)) / base,
            "per-example gradients": counted(lambda: batch_gradient(risk, batch)) / base,
        }

    def forward(self, data: Any, batch_size: int) -> Work:
        """The plain model and its losses over all examples, read as the scoring beside it reads them."""

        def batches() -> Any:
            if isinstance(data, TensorDataset):
                return zip(*(tensor.split(batch_size) for tensor in data.tensors), strict=True)
            return DataLoader(data, batch_size=batch_size)

        def work() -> None:
            with torch.no_grad():
                for pixels, labels in batches():
                    F.cross_entropy(self.model(pixels.to(self.labels.device)), labels.to(self.labels.device))

        return work

    def scored(self, risk: Risk, adjoints: Tensor, way: Way) -> Work:
        """What `trace` does to score a stage, with a given way."""
        scorer = Scorer(risk, adjoints, False, adjoints.shape[1] if adjoints.shape[1] > 1 else None, way, "")
        return lambda: list(scorer.run(lambda number: None, lambda number, part: None, Silent()))

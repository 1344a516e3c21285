"""`ranking`: many queries over up to a million examples, `rank` keeping the ends of each query's ranking alone.

A small network of three layers over drawn numbers: what is looked at is the memory, which must not grow with the
examples beyond what the data take, and the seconds, which must grow with them. `matrix MB` is what the scores would
take that `rank` does not hold, in float32. `extrapolated s` is what the row before leads one to expect: its seconds an
example, times the examples.
"""

import resource
import time
import warnings

import torch
from torch import nn
from torch.utils.data import TensorDataset

from benchmarks.report import Report, Row
from benchmarks.setting import parameters
from stagetrace import Chain, GaussNewton, Lanczos, Query, Shift, Stage
from stagetrace.objectives import Classification
from stagetrace.tracing import rank

EXAMPLES = (10_000, 100_000, 1_000_000)
QUERIES, FEATURES, CLASSES, TOP = 1000, 10, 4, 100
GROWTH_MB = 200.0
"""Of a process's peak, beyond the data's own bytes, from the fewest to the most examples: allocators keep some of what
they were given back."""


def run(report: Report) -> None:
    """The same queries over more and more examples."""
    quick = report.asked.quick
    queries, most = (50, 20_000) if quick else (QUERIES, EXAMPLES[-1])
    numbers = (2_000, most) if quick else EXAMPLES
    generator = torch.Generator().manual_seed(report.asked.seed)
    torch.manual_seed(report.asked.seed)
    model = nn.Sequential(nn.Linear(FEATURES, 12), nn.Tanh(), nn.Linear(12, 10), nn.Tanh(), nn.Linear(10, CLASSES))
    x = torch.randn(most, FEATURES, generator=generator)
    y = torch.randint(CLASSES, (most,), generator=generator)
    tests = TensorDataset(
        torch.randn(queries, FEATURES, generator=generator), torch.randint(CLASSES, (queries,), generator=generator)
    )
    report.fields |= {"parameters": parameters(model), "queries": queries, "top": TOP}
    table, before = list[Row](), _peak()
    for examples in numbers:
        data = TensorDataset(x[:examples], y[:examples])
        chain = Chain(Stage("only", model=model, objective=Classification(), data=data, batch_size=4096))
        started = time.process_time()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = rank(
                chain,
                Query(tests, reduction="none"),
                top=TOP,
                curvature=GaussNewton(examples=1000),
                solver=Lanczos(0.01, filter=Shift),
            )
        seconds, last = time.process_time() - started, table[-1] if table else None
        solution = found["only"].solution
        assert solution is not None
        table.append(
            {
                "examples": examples,
                "processor s": seconds,
                "extrapolated s": None if last is None else last["processor s"] * examples / last["examples"],
                "us an example": 1e6 * seconds / examples,
                "peak MB": _peak(),
                "grown by, MB": _peak() - before,
                "matrix MB": 4e-6 * examples * queries,
                "worst residual": solution.relative_residual,
            }
        )
    report.table(f"Ranking for {queries:,} queries, {TOP} of each end", table, "examples")
    report.target(
        f"growth of the peak from {numbers[0]:,} to {most:,} examples, MB",
        table[-1]["peak MB"] - table[0]["peak MB"],
        GROWTH_MB,
    )


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

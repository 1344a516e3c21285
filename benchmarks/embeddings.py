"""`embeddings`: does an example cost what it touches, or what the vocabulary holds?

A fixed batch of skip-gram lines, all of whose words are among the first thousand, and vocabularies that grow around
them. Work of the batch, counted: with m pairs of 1 + k targets and width d, a forward pass looks up `m (2 + k)` rows
and multiplies `m (1 + k) d` numbers, whatever the vocabulary V. What V adds:

    scores            nothing: a tangent is looked up as its row is. It must be laid out in storage of its own, once
                      (`directions`): PyTorch copies a tangent that is a part of a longer vector whenever it is used,
                      `2 V d` numbers a batch, which `copied for each batch` shows
    gradients         `2 V d` zeros, in which the touched rows are filled
    curvature products  the same, and the vectors of a solve are as long: a Krylov basis of s steps holds `2 s V d`

A solve needs the touched rows only: elsewhere the curvature is its penalty, exactly. `touched` counts them. Seconds are
the least of the repetitions, since what is compared are different vocabularies, minutes apart.
"""

from typing import Any

import torch
from torch import Tensor
from torch.utils.data import TensorDataset

from benchmarks.report import Report, Row
from benchmarks.timing import Work, in_turn
from experiments.word_vectors.model import NegativeSampling, SkipGram
from stagetrace import Hessian, Stage
from stagetrace.stages.bound import BoundStage
from stagetrace.stages.data import Batch
from stagetrace.stages.gradient import batch_gradient
from stagetrace.stages.risk import Risk
from stagetrace.stages.tangent import directional
from stagetrace.tracing.contract import directions, forward_mode

TOUCHED = 1000
WIDTH, LINES, PAIRS, NEGATIVES = 50, 256, 16, 5
VOCABULARIES = (1_000, 10_000, 100_000)
COLUMNS = 4
BASIS = 100
"""Steps of the Krylov basis whose bytes are counted."""


def run(report: Report) -> None:
    """A row a vocabulary; then the targets, as ratios of the largest to the smallest."""
    sizes = VOCABULARIES[:2] if report.asked.quick else VOCABULARIES
    table = [_row(words, report.asked.seed, report.asked.repetitions(5)) for words in sizes]
    report.table(f"{LINES} lines of {PAIRS} pairs, {1 + NEGATIVES} targets each, width {WIDTH}", table, "embeddings")
    grown = sizes[-1] / sizes[0]
    growth = table[-1]["scores, ms"] / table[0]["scores, ms"]
    report.target(f"seconds of scoring: growth for {grown:g} times the vocabulary", growth, 1.5)


def batch_of(seed: int) -> TensorDataset:
    """Lines whose words are numbers from 1 to `TOUCHED - 1`, as `word-vectors` has them."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randint(1, TOUCHED, (LINES, PAIRS), generator=generator)
    targets = torch.randint(1, TOUCHED, (LINES, PAIRS, 1 + NEGATIVES), generator=generator)
    return TensorDataset(centres, centres, targets, centres > 0)


def _row(words: int, seed: int, repetitions: int) -> Row:
    torch.manual_seed(seed)
    data = batch_of(seed)
    stage = Stage(
        "pretrain",
        model=SkipGram(words, WIDTH),
        objective=NegativeSampling(),
        data=data,
        weight_decay=1e-3,
        batch_size=LINES,
    )
    bound = BoundStage.of(stage, None)
    risk = bound.risk
    batch = next(iter(risk.read(risk.examples.batch_indices())))
    curvature = Hessian().operator(bound)
    adjoints = torch.randn(risk.trained.size, COLUMNS, generator=torch.Generator().manual_seed(seed))
    vector = adjoints[:, 0].clone()
    times = in_turn(_works(risk, batch, adjoints, lambda: curvature @ vector), repetitions)
    touched = touched_rows(risk, batch)
    vector_bytes = risk.trained.size * adjoints.element_size()
    return {
        "words": words,
        "touched rows": touched,
        "of all": touched / (2 * words),
        **{f"{name}, ms": 1e3 * time.least for name, time in times.items()},
        f"basis of {BASIS}, MB": BASIS * vector_bytes / 1e6,
        "of touched rows, MB": BASIS * touched * WIDTH * adjoints.element_size() / 1e6,
    }


def _works(risk: Risk, batch: Batch, adjoints: Tensor, product: Work) -> dict[str, Work]:
    """What is timed, each for the whole batch."""
    one = adjoints[:, :1].contiguous()
    views = risk.trained.unflatten(adjoints[:, 0].contiguous())
    along, several = directions(risk.trained, one), directions(risk.trained, adjoints)

    def losses(values: dict[str, Tensor]) -> Tensor:
        return risk.losses(values, risk.inherited_values, batch)

    def plain(work: Any) -> Work:
        def without_graph() -> None:
            with torch.no_grad():
                work()

        return without_graph

    return {
        "forward": plain(lambda: losses(risk.trained_values)),
        "scores": lambda: forward_mode(risk, batch, one, along),
        "copied for each batch": plain(lambda: directional(losses, risk.trained_values, views)),
        f"{COLUMNS} adjoints": lambda: forward_mode(risk, batch, adjoints, several),
        "gradient": lambda: batch_gradient(risk, batch),
        "Hessian product": product,
    }


def touched_rows(risk: Risk, batch: Batch) -> int:
    """Rows of all matrices in which the batch's gradient is not zero."""
    slopes = risk.trained.unflatten(batch_gradient(risk, batch).trained[:, 0])
    return sum(int(slope.any(dim=1).sum()) for slope in slopes.values())

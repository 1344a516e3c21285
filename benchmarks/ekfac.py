"""`ekfac`: what the fit of EK-FAC and 1, 100 and 1,000 queries cost, and how far its ranking is from the exact one.

The setting: the trained network of 11,780 parameters, curvature over 1,000 of its examples, a damping of 0.01, all
examples scored, the first test examples as queries. A row is a whole `trace`, checks and gradients included, in seconds
of the processor; the parts beside it are the trace's own, in seconds of the clock.

The exact answer is that of `(G + damping I) x = b` in float64, in sample space: with G = R'R and a row of R for each
example and direction of its loss,

    x = (b - R' (R R' + damping I)^-1 R b) / damping,

R by plain `torch.func` and without rows whose squared norm is below 1e-9. Its residual by the library's own product
with G stands beside it.

For each query the scores of all examples are compared with the exact ones: Pearson's correlation, and how many of the
100 most harmful are the same. The same of the gradient product says what a curvature adds, that at other dampings how
much is the damping's. With `--rival PYTHON`, which has kronfluence installed, its EK-FAC of the same examples is fitted
and scores the same queries in a process of its own.
"""

import time

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, jacrev, vmap
from torch.utils.data import TensorDataset

from benchmarks.report import Report, Row
from benchmarks.rival import Rival
from benchmarks.setting import small_network
from experiments.tasks import Task
from stagetrace import EKFAC, Chain, Direct, GaussNewton, Query, Shift, Stage, trace
from stagetrace.objectives import Classification
from stagetrace.solvers import solve
from stagetrace.stages.bound import BoundStage
from stagetrace.stages.gradient import each_gradient
from stagetrace.tracing.contract import per_example

DAMPING = 0.01
QUERIES = (1, 100, 1000)
AIMS = {100: 0.45, 1000: 0.65}
"""Of kronfluence's processor seconds, by the number of queries."""
COMPARED = 100
TOP = 100
NEGLIGIBLE = 1e-9
BATCH = 512


def run(report: Report) -> None:
    """The costs, the agreement, and another library's beside them."""
    asked = report.asked
    task = asked.digits()
    model = small_network(asked, task)
    stage = Stage("pretrain", model=model, objective=Classification(), data=task.train.dataset, batch_size=BATCH)
    chain = Chain(stage)
    numbers = (1, 20) if asked.quick else QUERIES
    examples = asked.hessian_examples
    _costs(report, chain, task, examples, numbers)
    compared = min(COMPARED, max(numbers))
    exact, queries = _exact(report, chain["pretrain"], task, examples, compared)
    answers = {"exact": exact, **_answers(chain["pretrain"], examples, queries)}
    scores = _scores(chain["pretrain"], answers)
    if asked.rival is not None:
        scores |= _rival(report, model, task, list(EKFAC(examples).indices(chain["pretrain"])), numbers, compared)
    _agreement(report, scores)


def _costs(report: Report, chain: Chain, task: Task, examples: int, numbers: tuple[int, ...]) -> None:
    table: list[Row] = []
    for number in numbers:
        query = Query(TensorDataset(task.test.pixels[:number], task.test.labels[:number]), reduction="none")
        started = time.process_time()
        result = trace(chain, query, curvature=EKFAC(examples), solver=Direct(DAMPING, Shift))
        seconds = time.process_time() - started
        spent: dict[str, float] = result.statistics["seconds"]  # pyright: ignore[reportAssignmentType]
        row: Row = {"queries": number, "processor s": seconds}
        for name, words in (("solving", "solving stage"), ("gradients", "gradient"), ("scoring", "scoring")):
            row[f"{name}, s"] = sum(value for key, value in spent.items() if key.startswith(words))
        table.append(row)
        report.fields["notes"] = list(result.solutions["pretrain"].notes)
    bound = chain["pretrain"]
    started = time.process_time()
    operator = EKFAC(examples).operator(bound)
    probed = time.process_time()
    operator.eigen()
    fitted = time.process_time()
    report.fields["fit"] = {"taps and their check, processor s": probed - started, "fit, processor s": fitted - probed}
    report.say(f"taps and their check {probed - started:.3g} s, fit over {examples:,} examples {fitted - probed:.3g} s")
    report.table(f"trace with EKFAC, {len(bound.stage.examples):,} examples scored", table, "costs")
    for note in report.fields["notes"]:
        report.say(f"note: {note}")


# The exact answer


def _exact(report: Report, bound: BoundStage, task: Task, examples: int, compared: int) -> tuple[Tensor, Tensor]:
    """Exact solutions and the queries' gradients, `[P, queries]`."""
    chosen = list(EKFAC(examples).indices(bound))
    rows = _rows(bound.stage.model, task.train.pixels[chosen])
    kept = rows[rows.square().sum(dim=1) > NEGLIGIBLE]
    few = TensorDataset(task.test.pixels[:compared], task.test.labels[:compared])
    risk = Query(few, reduction="none").risk(bound)
    queries = each_gradient(risk).trained
    b = queries.double()
    gram = kept @ kept.T + DAMPING * torch.eye(len(kept), dtype=kept.dtype)
    exact = (b - kept.T @ torch.cholesky_solve(kept @ b, torch.linalg.cholesky(gram))) / DAMPING
    true = GaussNewton(examples).operator(bound)
    x = exact[:, :1].to(queries.dtype)
    residual = float((queries[:, :1] - true @ x - DAMPING * x).norm() / queries[:, 0].norm())
    trace_of = float(rows.square().sum())
    eigen = EKFAC(examples).operator(bound).eigen()
    ours = float("nan") if eigen is None else float(eigen.values.sum())
    report.fields["exact"] = {"rows": len(kept), "residual": residual, "trace of G": trace_of, "trace of EK-FAC": ours}
    report.say(f"exact: {len(kept):,} rows, residual {residual:.1e}; trace of G {trace_of:.7g}, of EK-FAC {ours:.7g}")
    return exact.to(queries.dtype), queries


def _rows(model: nn.Module, pixels: Tensor) -> Tensor:
    """R `[examples x classes, P]` in float64: `sqrt(w) v' J / sqrt(n)` with the eigenpairs of `diag p - p p'`."""
    parameters = {name: value.detach() for name, value in model.named_parameters()}

    def logits(values: dict[str, Tensor], one: Tensor) -> Tensor:
        return functional_call(model, values, (one.unsqueeze(0),)).squeeze(0)

    found: list[Tensor] = []
    for some in pixels.split(100):
        slopes = vmap(jacrev(logits), (None, 0))(parameters, some)
        jacobian = torch.cat([slopes[name].flatten(2) for name in parameters], dim=2).double()
        with torch.no_grad():
            p = model(some).double().softmax(dim=1)
        values, vectors = torch.linalg.eigh(torch.diag_embed(p) - p.unsqueeze(2) * p.unsqueeze(1))
        roots = vectors * values.clamp_min(0).sqrt().unsqueeze(1)
        found.append((roots.mT @ jacobian).flatten(0, 1))
    return torch.cat(found) / len(pixels) ** 0.5


# Agreement


def _answers(bound: BoundStage, examples: int, queries: Tensor) -> dict[str, Tensor]:
    """Answers of EK-FAC at several dampings and with and without exact blocks, and the gradients themselves."""
    found = {"gradient product": queries}
    for exact in (512, 0):
        operator = EKFAC(examples, exact=exact).operator(bound)
        for damping in (DAMPING, DAMPING / 10, DAMPING / 100) if exact else (DAMPING,):
            name = f"EKFAC(exact={exact}), damping {damping:g}"
            found[name] = solve(operator, queries, Direct(damping, Shift)).value
    return found


def _scores(bound: BoundStage, answers: dict[str, Tensor]) -> dict[str, Tensor]:
    """Scores `[queries, examples]` of each, all in one pass over the examples."""
    columns = torch.cat(list(answers.values()), dim=1)
    risk, found = bound.risk, list[Tensor]()
    for batch in risk.read(risk.examples.batch_indices()):
        found.append(-per_example(risk, batch, columns)[1])
    split = torch.cat(found).split([each.shape[1] for each in answers.values()], dim=1)
    return {name: each.mT for name, each in zip(answers, split, strict=True)}


def _agreement(report: Report, scores: dict[str, Tensor]) -> None:
    exact = scores.pop("exact").double()
    table = [{"scores": name, **agreement(exact, each.double())} for name, each in scores.items()]
    report.table(f"Against the exact scores of {len(exact)} queries", table, "agreement")


def agreement(exact: Tensor, scores: Tensor) -> Row:
    """Pearson's correlation over the queries, and the share of the most harmful examples that both name.

    Example:
        >>> both = torch.arange(300.0).repeat(2, 1)
        >>> agreement(both, 2 * both)["recall@100"]
        1.0
    """
    one, other = (each - each.mean(dim=1, keepdim=True) for each in (exact, scores))
    pearson = F.cosine_similarity(one, other, dim=1)
    tops = [each.topk(min(TOP, exact.shape[1]), dim=1).indices.tolist() for each in (exact, scores)]
    shared = [len(set(a) & set(b)) / len(a) for a, b in zip(*tops, strict=True)]
    return {
        "r, median": float(pearson.median()),
        "r, least": float(pearson.min()),
        "recall@100": sum(shared) / len(shared),
    }


# Another library


def _rival(
    report: Report, model: nn.Module, task: Task, chosen: list[int], numbers: tuple[int, ...], compared: int
) -> dict[str, Tensor]:
    """kronfluence's costs in a process of its own, and its scores of the queries that are compared."""
    table: list[Row] = []
    found: dict[str, Tensor] = {}
    for number in numbers:
        rival = Rival.of(report.asked, model, task, chosen, number, DAMPING)
        if rival is None:
            return {}
        table.append({"queries": number, "processor s": rival.fit + rival.score, "fit, processor s": rival.fit})
        if number >= compared:
            found.setdefault("kronfluence", rival.scores[:compared])
    report.table("kronfluence, the same examples and queries", table, "kronfluence")
    ours = {row["queries"]: row["processor s"] for row in report.fields["costs"]}
    for row in table:
        number = int(row["queries"])
        if number in AIMS:
            ratio = ours[number] / float(row["processor s"])
            report.target(f"processor seconds of {number:,} queries over kronfluence's", ratio, AIMS[number])
    return found

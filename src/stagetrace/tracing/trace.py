"""`trace`: from a chain and a query to the scores of every stage's examples."""

import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from stagetrace.checks import Finding, Level, verify_query, verify_stage
from stagetrace.curvature.auto import Auto
from stagetrace.curvature.choices import Curvature
from stagetrace.errors import DataError, StagetraceWarning
from stagetrace.parallel import world
from stagetrace.progress import Bars, Progress, Silent
from stagetrace.results import JSON, RunFolder, Scores, Trace
from stagetrace.results.lock import refuse_in_use
from stagetrace.solvers.base import Solver
from stagetrace.solvers.early_stopping import EarlyStopping
from stagetrace.solvers.lanczos import Lanczos
from stagetrace.stages.bound import BoundStage
from stagetrace.stages.chain import Chain
from stagetrace.stages.coverage import notices_at
from stagetrace.stages.fingerprint import reading_once
from stagetrace.stages.gradient import Gradient
from stagetrace.stages.modes import in_ordinary_modes
from stagetrace.tracing.arguments import check_arguments, check_options
from stagetrace.tracing.backward import backward_pass, solution_warnings
from stagetrace.tracing.describe import by_stage, describe, scored_stages
from stagetrace.tracing.ensemble import mean_over, trained_seeds
from stagetrace.tracing.keeping import scored_into
from stagetrace.tracing.query import Query
from stagetrace.tracing.responses.implicit import Implicit
from stagetrace.tracing.responses.recorded import Replayed
from stagetrace.tracing.responses.response import Response
from stagetrace.tracing.responses.segments import InSegments
from stagetrace.tracing.rounded import too_fine
from stagetrace.tracing.same_job import check_same_job
from stagetrace.tracing.sharded import admit
from stagetrace.tracing.statistics import RunStatistics
from stagetrace.tracing.token_score import token_scorer
from stagetrace.tracing.token_stages import most_tokens, token_stages
from stagetrace.tracing.usual import chosen, usual_solvers


@in_ordinary_modes
def trace(
    chain: Chain,
    query: Query,
    *,
    curvature: Curvature | str | Mapping[str, Curvature | str] | None = None,
    solver: Solver | str | Mapping[str, Solver | str] | None = None,
    of: Iterable[str] | str | None = None,
    parts: bool = False,
    tokens: bool | int = False,
    out: str | Path | None = None,
    progress: Progress | bool = False,
) -> Trace:
    """Trace a query's loss back through every stage of a chain, to the examples that caused it.

    Args:
        chain: the stages, in training order.
        query: the loss to explain.
        curvature: what stands for each stage's second derivative; one for all, or a mapping by stage name (stages it
            does not name take the default: the Hessian, or Gauss-Newton where that is indefinite, see
            `stagetrace.curvature.Auto`). The names of the command line stand for their defaults: "auto", "hessian",
            "gauss-newton", "ekfac", "identity".
        solver: how it is inverted; one for all, or a mapping by stage name; the default is `Lanczos()`, whose
            damping is taken from the stage's spectrum, `Direct("auto", Shift)` for `EKFAC()`, or `EarlyStopping` for a
            stage with `training=...` before stages that were recorded; a warning says so. By name: "lanczos",
            "normal-cg", "cg", "lissa", "direct".
        of: names of the stages whose examples are scored; None scores every stage's. The backward pass ends at the
            earliest.
        parts: also keep the paper's two parts apart: the influence that reached the query through shared parameters
            (`via_shared`) and through the last stage's head (`via_head`); they sum to the score. Doubles the solves.
        tokens: also score single tokens, of stages whose loss is a sum over them: what each predicted token's term of
            its example's loss contributes; they sum to the example's score. `Trace.tokens` holds the million with the
            largest scores of each stage (or as many as are asked for, tokens=N), all of the 100 examples at either end
            of the ranking, and for every example the sum of the rest. Takes a query of up to 8 rows.
        out: a folder to keep the run in as it goes; the same call after a kill continues there.
        progress: True draws progress bars on standard error.

    Returns:
        A `Trace`: `Scores` by stage name. Score i is d(query loss)/d(epsilon) where the stage minimised `mean loss +
        epsilon * loss_i` and every later stage was trained again: **positive = harmful**. Unit: query loss.

    Raises:
        DescriptionError: a setting does not fit the chain.
        DataError: data or a loss cannot be used (the example is named), or every score of a stage would be zero.
        DifferentiationError: the model or a loss has no right derivative.
        SolveError: a solve has no usable answer. One that is merely unconverged warns (`ConvergenceWarning`), and its
            residual stands in `Trace.solutions`.
        ResultsError: `out` holds another run; the message lists what differs.

    Source: Chen et al. (2020), algorithm 1, for any number of stages.

    Example:
        Two ridge regressions, one weight each: the first fits w, the second keeps w and fits a bias.

        >>> import torch
        >>> from stagetrace import Chain, Direct, Frozen, Query, Stage, trace
        >>> from stagetrace.objectives import Regression
        >>> class Line(torch.nn.Module):
        ...     def __init__(self, w, b, learns_b):
        ...         super().__init__()
        ...         self.w = torch.nn.Parameter(torch.tensor(w))
        ...         self.b = torch.nn.Parameter(torch.tensor(b), requires_grad=learns_b)
        ...     def forward(self, x):
        ...         return self.w * x + self.b
        >>> first = Stage("first", model=Line(2.0, 0.0, False), objective=Regression(), data=[(1.0, 1.0), (1.0, 3.0)])
        >>> kept = Frozen("w")
        >>> second = Stage("second", model=Line(2.0, 1.0, True), objective=Regression(), data=[(1.0, 3.0)], link=kept)
        >>> result = trace(Chain(first, second), Query([(3.0, 8.0)]), solver=Direct(), of="first")
        >>> result["first"].values  # d(7 - 8)^2 = 2 (-1) dq, and q = 3 w + b moves by 3 dw - dw, dw = -dloss_i / 2
        tensor([ 4., -4.], dtype=torch.float64)
    """
    check_arguments(chain, query)
    check_options(of, out, progress)
    if out is not None:
        world().first(lambda: refuse_in_use(out), "the run's folder")  # now, and not after the data have been read
    bars = progress if not isinstance(progress, bool) else Bars() if progress and world().is_first else Silent()
    chain = chain.refreshed()  # a model may have been trained on since the chain was made
    curvatures, most = by_stage(chain, curvature, Auto(), "curvature"), most_tokens(tokens)
    usual = usual_solvers(chain, curvatures)
    solvers = by_stage(chain, solver, Lanczos(), "solver", usual)
    with admit(chain, query, curvatures, solvers), reading_once():
        scored = scored_stages(chain, of)
        by_token = token_stages(chain, query, scored) if most else ()
        kept = out is not None
        settings = {"of": sorted(scored), "parts": parts, "tokens": most, "out": kept}
        check_same_job(chain, query, curvature=curvatures, solver=solvers, **settings)
        statistics = RunStatistics(chain, bars)
        seeds = trained_seeds(chain)
        if seeds:
            described = describe(chain, query, curvatures, solvers, scored, parts=parts, progress=statistics, read=kept)
            options: dict[str, Any] = {"curvature": curvature, "solver": solver, "of": scored, "parts": parts}
            return _of_trained(chain, query, seeds, described, out, **options, progress=bars)
        statistics.record_checks([*say_chosen(solvers, usual), *checked(chain, query, statistics)])
        # built for all stages first: what cannot be solved is refused now, not after the later stages have been
        walked = chain.bound_stages[min(map(chain.names.index, scored)) :]
        responses = {
            bound.name: response_of(bound, curvatures[bound.name], solvers[bound.name], by_token=bound.name in by_token)
            for bound in walked
        }
        statistics.record_plan(responses)
        statistics.record_checks(say_too_fine(responses, solvers, query))
        described = describe(chain, query, curvatures, solvers, scored, parts=parts, progress=statistics, read=kept)
        described |= {"tokens": {"stages": list(by_token), "kept": most}} if by_token else {}
        with RunFolder.open(out, described) as folder:
            if folder.complete:
                return _with_warnings(Trace(*folder.contents()))
            gradient = query.gradient(chain.last, statistics)
            check_not_flat(gradient, query)
            gradient = _columns(gradient, chain, parts=parts)
            for bound, step in backward_pass(chain, responses, gradient, folder.solution, statistics):
                folder.write_solution(bound.name, step.solution)
                if bound.name in scored:
                    scorer = step.scorer(parts=parts, rows=query.rows)
                    if bound.name in by_token:
                        scorer = token_scorer(scorer, bound, most, folder)
                    scores = scored_into(folder, bound, scorer, statistics)
                    statistics.record_scores(bound.name, scorer, _some_influence(scores, bound))
                statistics.record_solution(bound.name, step.solution)
                if scored <= set(statistics.scores):
                    break
            result = statistics.trace(described)
            folder.finish(result.statistics)
        return _with_warnings(result)


def _of_trained(
    chain: Chain, query: Query, seeds: Sequence[int], described: dict[str, JSON], out: str | Path | None, **options: Any
) -> Trace:
    """The mean over orders of the batches, for a chain whose stages the library trains; kept whole, or not at all."""
    if out is not None:
        with RunFolder.open(out, described) as folder:
            if folder.complete:
                return _with_warnings(Trace(*folder.contents()))
    result = mean_over(chain, seeds, lambda made: trace(made, query, **options), described)
    if out is not None:
        result.save(out)
    return result


def say_chosen(solvers: Mapping[str, Solver], usual: Mapping[str, Solver]) -> list[Finding]:
    """What was chosen for a stage in the place of the default, said aloud."""
    found = chosen(solvers, usual)
    for finding in found:
        warnings.warn(f"stage '{finding.where}': {finding.text}", StagetraceWarning, stacklevel=4)
    return found


def say_too_fine(responses: Mapping[str, Response], solvers: Mapping[str, Solver], query: Query) -> list[Finding]:
    """Where more digits are asked for than products in a chosen precision have, said aloud."""
    columns = query.rows or 1
    looked = (too_fine(stage, response.cost(), solvers[stage], columns) for stage, response in responses.items())
    found = [finding for finding in looked if finding is not None]
    for finding in found:
        warnings.warn(f"stage '{finding.where}': {finding.text}", StagetraceWarning, stacklevel=4)
    return found


def response_of(bound: BoundStage, curvature: Curvature, solver: Solver, *, by_token: bool = False) -> Response:
    """How a stage's outcome is taken to follow: through its recorded training where there is one, else as a minimum.

    by_token: whether tokens will be scored, which recorded steps must know before they are walked.
    """
    if bound.recording is not None:
        return Replayed(bound, bound.recording, by_token=by_token)
    if isinstance(solver, EarlyStopping) and solver.earlier:
        return InSegments(bound, curvature, solver)
    return Implicit(bound, curvature, solver)


def checked(chain: Chain, query: Query, progress: Progress) -> list[Finding]:
    """Refuse what would give wrong numbers; warn of what was handled and of doubtful derivatives."""
    found: list[Finding] = []
    for bound in chain:
        for notice in notices_at(bound):
            warnings.warn(notice, StagetraceWarning, stacklevel=4)
    for data in (query.data, query.contrast):
        for notice in getattr(data, "notices", ()):
            warnings.warn(notice, StagetraceWarning, stacklevel=4)
    what, asked = "checking losses and derivatives", query.risks(chain.last)
    with progress.task(what, len(chain) + len(asked), "data sets") as advance, world().together(what):
        for place, bound in enumerate(chain):
            found.extend(verify_stage(bound, chain.stages[:place]))
            advance(1)
        for risk in asked:
            found.extend(verify_query(risk, chain.last, chain.stages[:-1]))
            advance(1)
    for finding in found:
        if finding.level is Level.WARNING:
            where = "the query" if finding.where == "query" else f"stage '{finding.where}'"
            warnings.warn(f"{where}: {finding.text}", StagetraceWarning, stacklevel=4)
    return found


def check_not_flat(gradient: Gradient, query: Query) -> None:
    """Refuse a query whose gradient is zero, and name single examples: all their scores would be zero.

    Raises:
        DataError: the gradient is zero in every parameter.
    """
    seen = gradient.trained.any(dim=0) | gradient.inherited.any(dim=0)
    flat = world().sum(seen.double()) == 0  # a process may have a piece that is zero
    if bool(flat.all()):
        raise DataError(
            "the query: the gradient of its loss is zero in every parameter of the last stage, so every score would be "
            "zero: the loss does not depend on the model, or is at its minimum to the last digit (a prediction that is "
            "certain in the model's precision: use float64, or another query loss)"
            f"{', or the contrast is the same examples' if query.contrast is not None else ''}"
        )
    if query.reduction == "none" and bool(flat.any()):
        some = flat.nonzero().flatten().tolist()
        warnings.warn(
            f"the query: the gradient of the loss of example {some[0]}"
            f"{f' and {len(some) - 1} more' if some[1:] else ''} is zero (its prediction is certain in "
            "the model's precision), so its scores are zero",
            StagetraceWarning,
            stacklevel=4,
        )


def _some_influence(scores: Scores, bound: BoundStage) -> Scores:
    """The scores; refused if all of them are zero, since that is a sign of a broken connection.

    Raises:
        DataError: with what to check.
    """
    if bool(scores.values.any()):
        return scores
    raise DataError(
        f"{bound.stage.where}: every score is zero: the query does not depend on what this stage trained, or every "
        f"example is fitted with zero loss. If you expect that of '{bound.name}', score only the others with of=[...]; "
        "otherwise check that the later stages' models and the query's loss use the parameters that they share with it"
    )


def _with_warnings(result: Trace) -> Trace:
    """The result, after the warnings of its solves; also when it was read from a folder."""
    for stage, solution in result.solutions.items():
        for warning in solution_warnings(stage, solution):
            warnings.warn(warning, stacklevel=4)
    return result


def _columns(gradient: Gradient, chain: Chain, *, parts: bool) -> Gradient:
    """The query's gradient, or its two parts side by side: what went through shared parameters, and the rest."""
    if not parts:
        return gradient
    last = chain.last
    shared = last.trained.mask(last.anchored_to).unsqueeze(1)
    beside = last.statistics.mask(last.shared_statistics).unsqueeze(1)
    return Gradient(
        torch.cat([gradient.trained * shared, gradient.trained * (1 - shared)], dim=1),
        torch.cat([gradient.inherited, torch.zeros_like(gradient.inherited)], dim=1),
        torch.cat([gradient.statistics * beside, gradient.statistics * (1 - beside)], dim=1),
    )

"""The checks of one set of losses, in order: what a later one relies on comes before it."""

import time
from collections.abc import Callable, Sequence

import torch

from stagetrace.checks.dependence import depends_on_its_model_only
from stagetrace.checks.derivative import gradient_is_the_derivative
from stagetrace.checks.double import in_double
from stagetrace.checks.finding import Finding, Level
from stagetrace.checks.independence import losses_are_their_own
from stagetrace.checks.lookout import CHECKS, Lookout
from stagetrace.checks.precision import data_are_not_cut
from stagetrace.checks.repeats import examples_repeat, losses_repeat
from stagetrace.checks.rounded import rounding_is_small
from stagetrace.checks.rounding import Rounding
from stagetrace.checks.second import second_derivative_is_right
from stagetrace.checks.shards import gradient_in_shards
from stagetrace.checks.state import keeps_no_state
from stagetrace.curvature.operations import counted_operations
from stagetrace.curvature.rounding import RoundedTo
from stagetrace.stages.bound import BoundStage
from stagetrace.stages.data import Batch
from stagetrace.stages.device import to_device
from stagetrace.stages.halves import is_out_of_memory, shrink
from stagetrace.stages.labelled import check_some_labelled
from stagetrace.stages.risk import Risk, check_finite
from stagetrace.stages.stage import Stage

QUERY = "query"
"""How findings name the query; no curvature is taken of it."""


def verify_stage(bound: BoundStage, before: Sequence[Stage] = ()) -> list[Finding]:
    """`verify` for a stage's own examples."""
    return verify(bound.risk, bound, bound.name, before)


def verify_query(risk: Risk, last: BoundStage, before: Sequence[Stage] = ()) -> list[Finding]:
    """`verify` for a query's examples, at the last stage of a chain."""
    return verify(risk, last, QUERY, before)


def in_short(findings: Sequence[Finding]) -> list[Finding]:
    """What is right in one finding, and each of the others as it is."""
    right = [found for found in findings if found.level is Level.OK]
    first, *rest = right
    looked_at = f"{', '.join(dict.fromkeys(found.what for found in rest))}: as they should be ({first.text})"
    seconds = sum(found.seconds for found in right)
    others = (found for found in findings if found.level is not Level.OK)
    return [Finding(first.where, "data", Level.OK, looked_at, seconds), *others]


def verify(risk: Risk, bound: BoundStage, where: str, before: Sequence[Stage] = ()) -> list[Finding]:
    """Look at some examples, their losses and the derivative of these, before anything is built on them.

    A few batches are evaluated, whatever the size of the data set. What fails is refused; what cannot be judged, and a
    backward that is not the derivative, is among the findings. All of it in the precision of the parameters, where
    nothing hides behind rounding; what a chosen precision changes is measured by itself.

    where: how the findings name it: a stage's name, or "query".
    before: the chain's earlier stages.

    Raises:
        DataError: an example differs between two reads; the losses are not one per example; one is NaN or infinite;
            they are random; an example's loss depends on what else is in its batch.
        DescriptionError: the loss depends on tensors that are no parameters of the model it is passed.
        DifferentiationError: the loss depends on parameters in which its gradient is zero.
    """
    examples = risk.examples
    with torch.random.fork_rng(devices=[]):  # a loss that draws is refused, and has drawn nothing from the caller
        while True:
            try:
                return _looked_at(risk, bound, where, before)
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                shrink(examples, CHECKS, len(Lookout.over(examples, _operations(risk)).together), error)


def _looked_at(chosen: Risk, bound: BoundStage, where: str, before: Sequence[Stage]) -> list[Finding]:
    findings: list[Finding] = []
    chosen = chosen.unweighted
    risk = chosen.exact

    def look(what: str, check: Callable[[], tuple[Level, str] | str]) -> None:
        started = time.perf_counter()
        found = check()
        level, text = (Level.OK, found) if isinstance(found, str) else found
        findings.append(Finding(where, what, level, text, time.perf_counter() - started))

    started = time.perf_counter()
    lookout = Lookout.over(risk.examples, _operations(risk))
    seconds = time.perf_counter() - started
    findings.append(Finding(where, "examples", Level.OK, _chosen(lookout, len(risk.examples)), seconds))
    look("reading", lambda: examples_repeat(risk, lookout.together))
    check_some_labelled(risk, list(lookout.together))
    batch = next(iter(risk.read([list(lookout.together)])))
    with torch.no_grad(), RoundedTo(risk.trained.dtype) as seen:
        outputs = risk.outputs(risk.trained_values, risk.inherited_values, batch)
        losses = risk.reduce(outputs, batch)
    check_finite(losses, batch.indices, risk.where)
    rounding = Rounding.of_outputs(outputs, seen.coarsest)
    look("precision", lambda: data_are_not_cut(risk, lookout.alone, rounding))
    look("repetition", lambda: losses_repeat(risk, batch, rounding))
    look("independence", lambda: losses_are_their_own(risk, batch, losses, lookout, rounding))
    few = next(iter(risk.read([list(lookout.alone)])))
    look("state", lambda: keeps_no_state(risk, few, bound.fresh_evaluation(), rounding))
    if risk.evaluation.shapes is not None:
        look("derivative", lambda: gradient_in_shards(risk, few))
        return findings
    look("dependence", lambda: depends_on_its_model_only(risk, few, before))
    short = next(iter(risk.read([list(lookout.short)])))
    wide = in_double(risk, few)
    look("derivative", lambda: gradient_is_the_derivative(*(wide or (risk, few)), coupled=where != QUERY))
    if where != QUERY and findings[-1].level is Level.OK:
        look("second derivative", lambda: second_derivative_is_right(*_same_in(risk, short, wide)))
    if chosen is not risk:
        look(f"products in {chosen.evaluation.precision}", lambda: rounding_is_small(chosen, short))
    return findings


def _operations(risk: Risk) -> int:
    """Of a forward pass over the first example; 0 where it cannot be counted, and where the model lies in shards."""
    if risk.evaluation.shapes is not None:
        return 0
    try:
        return counted_operations(risk, next(iter(risk.read([[0]]))))
    except Exception as error:
        if is_out_of_memory(error):
            raise
        return 0  # the checks themselves say what is wrong


def _same_in(risk: Risk, batch: Batch, wide: tuple[Risk, Batch] | None) -> tuple[Risk, Batch]:
    """A batch for the risk in float64, where there is one."""
    if wide is None:
        return risk, batch
    return wide[0], Batch(batch.indices, to_device(batch.content, torch.float64, risk.trained.device))


def _chosen(lookout: Lookout, total: int) -> str:
    text = f"{len(lookout.together):,} of {total:,} examples looked at: first, last, and at random"
    if not lookout.measured:
        return text
    return f"{text}; shortest and longest of {lookout.measured:,}"

"""One step back through a link: from a stage's adjoint to the gradient at the stage before it.

Let `F(Theta; W)` be what the stage minimised, `lambda` its adjoint (`H lambda = dq/dTheta`, H in its own parameters)
and `g` the query's gradient there. A shared parameter is one of two kinds, by the link, and each has one rule:

kept: Theta*(W) answers the stationarity `dF/dTheta = 0`, so `dTheta/dW = -H^-1 d2F/dTheta dW`, and
    dq/dW = g_W - (d2F/dW dTheta) lambda.                        (Chen et al. 2020, eq. 11)
    The first term is the query's direct use of W; without it the result is wrong and looks right.

moved: W is among the own parameters, and the link pulls it by `sum_j a_j (W_j - W'_j)^2` towards the previous stage's
    W'. The mixed derivative of the pull is `-2 a`, so `d(Theta, W)/dW' = H^-1 [0; 2 diag(a)]`, and
    dq/dW' = 2 a lambda_W.                                       (eq. 15; H includes 2 a on W)

Parameters of the previous stage that are not shared (its head) get zero; those it did not train itself are passed on
as inherited, or dropped if they are constants that no stage's examples move.
"""

from collections.abc import Sequence

from torch import Tensor

from stagetrace.curvature.mixed import mixed_product
from stagetrace.progress import Progress
from stagetrace.stages.gradient import Gradient
from stagetrace.stages.problem import Problem


def pull_back(
    problem: Problem,
    previous: Problem,
    adjoint: Tensor,
    gradient: Gradient,
    indices: Sequence[int],
    progress: Progress | None = None,
) -> Gradient:
    """The query's gradient at `previous`, given the adjoint `[own.size, k]` and gradient at `problem`.

    indices: the examples of `problem` whose mixed derivative couples it to `previous`; see `curvature.auto.coupled`.
    """
    at_kept = gradient.inherited - mixed_product(problem.risk, indices, adjoint, progress)  # (11)
    at_moved = problem.pull.unsqueeze(1) * adjoint  # (15)
    return handed_back(problem, previous, at_kept, at_moved)


def handed_back(problem: Problem, previous: Problem, at_kept: Tensor, at_moved: Tensor) -> Gradient:
    """The gradient at `previous`, given that in the parameters kept from it and in the start of those moved.

    at_kept: `[inherited.size, k]`; at_moved: `[own.size, k]`, of which what is not shared is left out; of `problem`.
    """
    columns = at_moved.shape[1]
    own, inherited = previous.own.zeros(columns), previous.inherited.zeros(columns)
    targets = {
        **{name: (own, where) for name, where in previous.own.slices().items()},
        **{name: (inherited, where) for name, where in previous.inherited.slices().items()},
    }
    for source, spaces, pairs in (
        (at_kept, problem.inherited, problem.kept),
        (at_moved, problem.own, problem.moved),
    ):
        places = spaces.slices()
        for name, other in pairs.items():
            if other in targets:
                vector, where = targets[other]
                vector[where] += source[places[name]].to(vector)
    return Gradient(own, inherited)

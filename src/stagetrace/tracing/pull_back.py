"""One step back through a link: from a stage's adjoint to the gradient at the stage before it.

Let `F(Theta; W)` be what the stage minimised over its trained parameters Theta, `lambda` its adjoint (`H lambda =
dq/dTheta`, with H the curvature in Theta), and `g` the query's gradient there. A shared parameter is one of two kinds,
by the link, and each has one rule:

inherited: Theta*(W) answers the stationarity `dF/dTheta = 0`, so `dTheta/dW = -H^-1 d2F/dTheta dW`, and
    dq/dW = g_W - (d2F/dW dTheta) lambda.                        (Chen et al. 2020, eq. 11)
    The first term is the query's direct use of W; without it the result is wrong and looks right.

anchored: W is among the trained parameters, and the link pulls it by `sum_j a_j (W_j - W'_j)^2` towards the
    previous stage's W'. The mixed derivative of the pull is `-2 a`, so `d(Theta, W)/dW' = H^-1 [0; 2 diag(a)]`, and
    dq/dW' = 2 a lambda_W.                                       (eq. 15; H includes 2 a on W)

Parameters of the previous stage that are not shared (its head) get zero; those it did not train itself are passed on
as inherited, or dropped if they are constants that no stage's examples move.
"""

from collections.abc import Sequence

from torch import Tensor

from stagetrace.curvature.mixed import mixed_product
from stagetrace.progress import Progress
from stagetrace.stages.bound import BoundStage
from stagetrace.stages.gradient import Gradient


def pull_back(
    bound: BoundStage,
    previous: BoundStage,
    adjoint: Tensor,
    gradient: Gradient,
    indices: Sequence[int],
    progress: Progress | None = None,
) -> Gradient:
    """The query's gradient at `previous`, given the adjoint `[trained.size, k]` and gradient at `bound`.

    indices: the examples of `bound` whose mixed derivative couples it to `previous`; see
        `curvature.auto.coupling_indices`.
    """
    inherited_part = gradient.inherited - mixed_product(bound.risk, indices, adjoint, progress)  # (11)
    anchored_part = bound.pull.unsqueeze(1) * adjoint  # (15)
    return handed_back(bound, previous, Gradient(anchored_part, inherited_part, gradient.statistics))


def handed_back(bound: BoundStage, previous: BoundStage, start: Gradient) -> Gradient:
    """The gradient at `previous`, given that at the start of `bound`.

    start: in what was trained from the values of `previous` on, in what was kept, and in the running statistics; only
        what is shared counts.
    """
    columns = start.trained.shape[1]
    trained, inherited = previous.trained.zeros(columns), previous.inherited.zeros(columns)
    statistics = previous.statistics.zeros(columns)
    targets = {
        **{name: (trained, where) for name, where in previous.trained.slices().items()},
        **{name: (inherited, where) for name, where in previous.inherited.slices().items()},
        **{name: (statistics, where) for name, where in previous.statistics.slices().items()},
    }
    for source, spaces, pairs in (
        (start.inherited, bound.inherited, bound.inherited_from),
        (start.trained, bound.trained, bound.anchored_to),
        (start.statistics, bound.statistics, bound.shared_statistics),
    ):
        places = spaces.slices()
        for name, other in pairs.items():
            if other in targets:
                vector, where = targets[other]
                vector[where] += source[places[name]].to(vector)
    return Gradient(trained, inherited, statistics)

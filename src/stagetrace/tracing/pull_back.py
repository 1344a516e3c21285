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

Where W' was computed from several parameters P of the previous stage, `W' = f(P)`, each P is handed its part by
`dq/dP = (df/dP)' dq/dW'`, whichever of the two rules gave `dq/dW'`; the same holds of where recorded steps began.

Parameters of the previous stage that are not shared (its head) get zero; those it did not train itself are passed on
as inherited, or dropped if they are constants that no stage's examples move.
"""

from collections.abc import Mapping, Sequence

from torch import Tensor

from stagetrace.curvature.mixed import mixed_product
from stagetrace.progress import Progress
from stagetrace.stages.bound import BoundStage
from stagetrace.stages.gradient import Gradient
from stagetrace.stages.links.computed import Origin, sources_of
from stagetrace.stages.space import ParameterSpace


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
    parts: list[tuple[Tensor, ParameterSpace, Mapping[str, Origin]]] = [
        (start.inherited, bound.inherited, bound.inherited_from),
        (start.trained, bound.trained, bound.anchored_to),
        (start.statistics, bound.statistics, bound.shared_statistics),
    ]
    theirs = dict(previous.stage.model.named_parameters())
    for source, space, origins in parts:
        places, shapes = space.slices(), dict(zip(space.names, space.shapes, strict=True))
        for name, origin in origins.items():
            if not any(other in targets for other in sources_of([origin])):
                continue  # constants
            part = source[places[name]]
            for other, each in _through(origin, theirs, part, shapes[name]).items():
                if other in targets:
                    vector, where = targets[other]
                    vector[where] += each.to(vector)
    return Gradient(trained, inherited, statistics)


def _through(origin: Origin, theirs: Mapping[str, Tensor], part: Tensor, shape: Sequence[int]) -> Mapping[str, Tensor]:
    """What each parameter that W' came from is handed of `dq/dW'`, `[size, k]` by its name."""
    if isinstance(origin, str):
        return {origin: part}
    pulled = origin.pulled_back(theirs, part.mT.reshape(-1, *shape))  # (df/dP)' dq/dW'
    return {name: rows.flatten(start_dim=1).mT for name, rows in pulled.items()}

"""What really happens: stages trained again without chosen examples, and how well scores predicted it.

Stages solved to a strict minimum: `stagetrace.validation.resolving` and `stagetrace.validation.newton`; means over
seeds: `stagetrace.validation.reliability`.
"""

from typing import TYPE_CHECKING

from stagetrace.renamed import removed

# compare
from stagetrace.validation.agreement import Agreement
from stagetrace.validation.control import Control
from stagetrace.validation.datamodel import LinearDatamodelling

# predict
from stagetrace.validation.estimators import (
    BM25,
    EmbeddingSimilarity,
    Estimator,
    ExactSteps,
    GradientDot,
    Influence,
    Random,
    SingleStage,
)

# train again
from stagetrace.validation.fits import SGD, Adam, AdamW, Fit, Rerun, Resolve, Steps
from stagetrace.validation.reliability import Reliability

# remove
from stagetrace.validation.removals import GroupRemovals, RandomRemovals, RemovalPlan, TopRemovals
from stagetrace.validation.resolving import polish, removal_effects
from stagetrace.validation.validate import Validation, validate

__all__ = [
    "BM25",
    "SGD",
    "Adam",
    "AdamW",
    "Agreement",
    "Control",
    "EmbeddingSimilarity",
    "Estimator",
    "ExactSteps",
    "Fit",
    "GradientDot",
    "GroupRemovals",
    "Influence",
    "LinearDatamodelling",
    "Random",
    "RandomRemovals",
    "Reliability",
    "RemovalPlan",
    "Rerun",
    "Resolve",
    "SingleStage",
    "Steps",
    "TopRemovals",
    "Validation",
    "polish",
    "removal_effects",
    "validate",
]

if not TYPE_CHECKING:
    __getattr__ = removed(
        __name__,
        {
            "Choice": "RemovalPlan",
            "Drawn": "RandomRemovals",
            "Groups": "GroupRemovals",
            "Largest": "TopRemovals",
            "MeanInterval": "from stagetrace.validation.reliability import MeanInterval",
            "Measured": "from stagetrace.validation.validate import Measured",
            "Minimum": "from stagetrace.validation.minimum import Minimum",
            "Preconditioner": "from stagetrace.validation.preconditioner import Preconditioner",
            "Resolved": "from stagetrace.validation.resolving import Resolved",
            "leave_out": "from stagetrace.validation.resolving import leave_out",
            "mean_over_seeds": "from stagetrace.validation.reliability import mean_over_seeds",
            "minimise": "from stagetrace.validation.newton import minimise",
            "query_loss": "from stagetrace.validation.resolving import query_loss",
            "resolve": "from stagetrace.validation.resolving import resolve",
        },
    )

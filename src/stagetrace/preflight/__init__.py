"""What can be known before a long run: what would go wrong, and what it would cost."""

from stagetrace.checks.finding import Finding, Level
from stagetrace.preflight.budget import Fitted, fit
from stagetrace.preflight.forecast import Forecast, Phase
from stagetrace.preflight.inspect import inspect
from stagetrace.preflight.predictor import predict

__all__ = [
    "Finding",
    "Fitted",
    "Forecast",
    "Level",
    "Phase",
    "fit",
    "inspect",
    "predict",
]

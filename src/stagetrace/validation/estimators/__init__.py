"""Predictions of retraining: the library's score, and the controls it has to beat, behind one interface."""

from stagetrace.validation.estimators.bm25 import BM25
from stagetrace.validation.estimators.embedding import EmbeddingSimilarity
from stagetrace.validation.estimators.estimator import Estimator
from stagetrace.validation.estimators.exact_steps import ExactSteps
from stagetrace.validation.estimators.gradient_dot import GradientDot
from stagetrace.validation.estimators.influence import Influence
from stagetrace.validation.estimators.random_order import Random
from stagetrace.validation.estimators.single_stage import SingleStage

__all__ = [
    "BM25",
    "EmbeddingSimilarity",
    "Estimator",
    "ExactSteps",
    "GradientDot",
    "Influence",
    "Random",
    "SingleStage",
]

"""Predictions of retraining: the library's score, and the controls it has to beat, behind one interface."""

from stagetrace.validation.estimators.bm25 import BM25 as BM25
from stagetrace.validation.estimators.embedding import EmbeddingSimilarity as EmbeddingSimilarity
from stagetrace.validation.estimators.estimator import Estimator as Estimator
from stagetrace.validation.estimators.gradient_dot import GradientDot as GradientDot
from stagetrace.validation.estimators.influence import Influence as Influence
from stagetrace.validation.estimators.random_order import Random as Random
from stagetrace.validation.estimators.single_stage import SingleStage as SingleStage

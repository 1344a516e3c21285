"""Training losses: per example, never reduced."""

from stagetrace.objectives.binary import BinaryClassification as BinaryClassification
from stagetrace.objectives.binary import MultiLabel as MultiLabel
from stagetrace.objectives.contrastive import Contrastive as Contrastive
from stagetrace.objectives.ctc import CTC as CTC
from stagetrace.objectives.distillation import Distillation as Distillation
from stagetrace.objectives.dpo import DPO as DPO
from stagetrace.objectives.grouped import Grouped as Grouped
from stagetrace.objectives.objective import Objective as Objective
from stagetrace.objectives.objective import TokenLosses as TokenLosses
from stagetrace.objectives.policy import WeightedLogProb as WeightedLogProb
from stagetrace.objectives.reward import Reward as Reward
from stagetrace.objectives.sequences import Seq2Seq as Seq2Seq
from stagetrace.objectives.spans import SpanAnswer as SpanAnswer
from stagetrace.objectives.supervised import Classification as Classification
from stagetrace.objectives.supervised import Regression as Regression
from stagetrace.objectives.tokens import MaskedToken as MaskedToken
from stagetrace.objectives.tokens import NextToken as NextToken
from stagetrace.objectives.weights import Weights as Weights

__all__ = [
    "CTC",
    "DPO",
    "BinaryClassification",
    "Classification",
    "Contrastive",
    "Distillation",
    "Grouped",
    "MaskedToken",
    "MultiLabel",
    "NextToken",
    "Objective",
    "Regression",
    "Reward",
    "Seq2Seq",
    "SpanAnswer",
    "TokenLosses",
    "WeightedLogProb",
    "Weights",
]

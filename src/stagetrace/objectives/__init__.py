"""Training losses: per example, never reduced."""

from stagetrace.objectives.binary import BinaryClassification as BinaryClassification
from stagetrace.objectives.binary import MultiLabel as MultiLabel
from stagetrace.objectives.dpo import DPO as DPO
from stagetrace.objectives.objective import Objective as Objective
from stagetrace.objectives.objective import TokenLosses as TokenLosses
from stagetrace.objectives.reward import Reward as Reward
from stagetrace.objectives.supervised import Classification as Classification
from stagetrace.objectives.supervised import Regression as Regression
from stagetrace.objectives.tokens import MaskedToken as MaskedToken
from stagetrace.objectives.tokens import NextToken as NextToken

__all__ = [
    "DPO",
    "BinaryClassification",
    "Classification",
    "MaskedToken",
    "MultiLabel",
    "NextToken",
    "Objective",
    "Regression",
    "Reward",
    "TokenLosses",
]

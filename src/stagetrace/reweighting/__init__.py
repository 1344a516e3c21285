"""Weights that help: how much each example should count, improved by the derivative through recorded training."""

from stagetrace.reweighting.result import Retrained, Reweighting, Try
from stagetrace.reweighting.reweight import reweight

__all__ = ["Retrained", "Reweighting", "Try", "reweight"]

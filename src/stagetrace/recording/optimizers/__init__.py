"""One step of an optimiser run backwards: the adjoint after the step in, the adjoint before it out."""

from stagetrace.recording.optimizers.instance import class_of, rule_for
from stagetrace.recording.optimizers.named import class_named, rule_of
from stagetrace.recording.optimizers.rule import Adjoint, Rule, State

__all__ = ["Adjoint", "Rule", "State", "class_named", "class_of", "rule_for", "rule_of"]

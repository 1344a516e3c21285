"""A recorded training run again: forwards to see that it is the one recorded, backwards to differentiate it."""

from stagetrace.replay.stopped import stopped_early

__all__ = ["stopped_early"]

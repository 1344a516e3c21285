"""A recorded training run again: forwards to see that it is the one recorded, backwards to differentiate it."""

from stagetrace.replay.checkpoints import Checkpoint
from stagetrace.replay.stopped import stopped_early

__all__ = ["Checkpoint", "stopped_early"]

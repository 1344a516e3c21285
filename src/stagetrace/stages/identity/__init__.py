"""What an object is, in a digest that is the same in every process: for objectives, models, batches and settings.

Followed are attributes at any depth, the code of the user's own functions and classes with what it refers to, closures,
defaults and hooks. What cannot be followed is named, so that a run with it is never taken for another.
"""

from stagetrace.stages.identity.identity import Identity as Identity

__all__ = ["Identity"]

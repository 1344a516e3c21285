"""Stages from TRL's trainers, which prepare their rows and compute their losses in ways of their own.

What they prepared is read as it stands in `trainer.train_dataset`, by their own collators, and the stage's loss is
compared with the trainer's own on its batches.
"""

from stagetrace.hf.trl.kinds import kind_of as kind_of
from stagetrace.hf.trl.stage import stage_of as stage_of

__all__ = ["kind_of", "stage_of"]

"""A recorded training run again, forwards to see that it is the one that was recorded, backwards to differentiate it."""

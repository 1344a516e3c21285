"""A recorded training run again: forwards to see that it is the one recorded, backwards to differentiate it."""

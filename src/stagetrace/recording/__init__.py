"""Training that was recorded as it ran, replayed and differentiated."""

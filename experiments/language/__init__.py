"""`language`: an ELMo-shaped language model, and tweets classified on top of it (Chen et al., section 4.5)."""

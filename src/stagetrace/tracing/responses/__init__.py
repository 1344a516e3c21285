"""How a stage's outcome answers to its examples' weights and to what it started from; one way a file."""

__all__: list[str] = []

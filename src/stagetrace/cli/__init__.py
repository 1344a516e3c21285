"""The command line: thin; every command calls the public API only."""

__all__: list[str] = []

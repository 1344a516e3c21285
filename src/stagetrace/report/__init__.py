"""A run as one HTML file that needs nothing else: `write`."""

from stagetrace.report.write import NAME, write

__all__ = ["NAME", "write"]

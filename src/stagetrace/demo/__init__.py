"""`stagetrace demo`: real digits, two training stages, scores, and stages really solved again to check them."""

from stagetrace.demo.digits import Settings
from stagetrace.demo.result import DemoResult
from stagetrace.demo.run import run

__all__ = [
    "DemoResult",
    "Settings",
    "run",
]

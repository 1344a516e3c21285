"""`stagetrace demo`: real digits, two training stages, scores, and stages really solved again to check them."""

from stagetrace.demo.digits import Settings as Settings
from stagetrace.demo.result import DemoResult as DemoResult
from stagetrace.demo.run import run as run

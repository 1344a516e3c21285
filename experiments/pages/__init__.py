"""The tables of the experiments' pages: `python -m experiments.pages [--results DIR] [--docs DIR] [--check]`.

A page, `docs/experiments/NAME.md`, is prose with blocks `<!-- table: WORDS -->` ... `<!-- end -->`. What stands between
the marks is made here from `experiments/results/NAME/result.json`, so no number in a table is typed by hand. The first
of the words is a name of `TABLES`, the others are given to it; `README.md` is the page of all experiments.

An interval is written `mean (low to high)`: 95 %, Student's t over seeds; of a single seed, the bootstrap over pairs.
"""

from experiments.pages.blocks import PAPER as PAPER
from experiments.pages.blocks import filled as filled
from experiments.pages.blocks import stale as stale
from experiments.pages.cells import NOT_RUN as NOT_RUN

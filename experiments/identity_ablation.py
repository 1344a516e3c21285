"""`identity-ablation`: `mnist-frozen` with the identity in place of every inverse Hessian (Figure 3).

The truth is that of `mnist-frozen`, for the same examples: a copy of that experiment's folder as `--out` saves training
them again. The coupling between the stages stays exact; only what is inverted is the identity.
"""

from dataclasses import replace

from experiments import mnist_frozen, paper
from experiments.settings import Settings
from stagetrace.progress import Progress

NAME = "identity-ablation"
PLAN = replace(
    mnist_frozen.PLAN,
    name=NAME,
    headline=paper.IDENTITY,
    compared=(paper.OURS, paper.DEFAULT, paper.PAPERS, paper.IDENTITY),
    reference="r = 0.17 (section 4.1), one run, n not given",
)


def run(settings: Settings, progress: Progress) -> None:
    """See `experiments.paper`."""
    paper.run(PLAN, settings, progress)

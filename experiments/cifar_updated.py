"""`cifar-updated`: as `cifar-frozen`, but fine-tuning trains the embedding further (Figure 2c; the paper's alpha 0.01).

When trained again, the paper takes 6,000 steps of pretraining and 1,000 of fine-tuning; here it is a twentieth of both.
So few steps move the embedding little: beside the paper's alpha stands the one that 50 steps amount to, by the rule
`2 alpha = 1 / (rate * steps)`.
"""

from dataclasses import replace

from experiments import cifar_frozen, paper
from experiments.settings import Settings
from stagetrace import Proximal
from stagetrace.progress import Progress

NAME = "cifar-updated"
PLAN = replace(
    cifar_frozen.PLAN,
    name=NAME,
    link=Proximal("embedding", alpha=0.01),
    again={"pretrain": 300, "finetune": 50},
    headline=paper.OF_STEPS,
    compared=(
        paper.OURS,
        paper.DEFAULT,
        paper.GAUSS_NEWTON,
        paper.OF_STEPS,
        paper.IDENTITY,
        "single-stage influence",
        "gradient dot product",
        "random",
    ),
    reference="r = 0.40 (section 4.1), one run, n not given",
)


def run(settings: Settings, progress: Progress) -> None:
    """See `experiments.paper`."""
    paper.run(PLAN, settings, progress)

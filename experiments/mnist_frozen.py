"""`mnist-frozen`: pretraining on the digits 0-3, a new head on 5,000 of the digits 4-9, the embedding kept (Figure 2b).

The setting of Chen et al. (2020), section 4.1, second data set: a convolutional network, tanh everywhere; Adam, batches
of 512; damping on H^2 of 1e-2 in pretraining and 1e-8 in fine-tuning; the pretraining Hessian from 1,000 sampled
examples; the query is the mean loss over the whole test set of the fine-tuning task; 100 steps a stage when trained
again. Rates, epochs and weight decay are not known from the paper and are ours.
"""

from experiments import paper
from experiments.paper import Plan
from experiments.settings import Settings
from experiments.training import Training
from stagetrace import Frozen
from stagetrace.progress import Progress

NAME = "mnist-frozen"
PLAN = Plan(
    name=NAME,
    dataset="mnist",
    first_classes=(0, 1, 2, 3),
    link=Frozen("embedding"),
    pretraining=Training(epochs=15, weight_decay=1e-3),
    finetuning=Training(epochs=60, weight_decay=1e-3),
    again={"pretrain": 100, "finetune": 100},
    damping={"pretrain": 1e-2, "finetune": 1e-8},
    orders=2,
    together=9,
    reference='r about 0.6 ("0.6 is reasonable to show a strong correlation", section 4.1), one run, n not given',
)


def run(settings: Settings, progress: Progress) -> None:
    """See `experiments.paper`."""
    paper.run(PLAN, settings, progress)

"""`cifar-frozen`: pretraining on birds and frogs, a new head for the other classes, the embedding kept (Figure 2a).

The setting of Chen et al. (2020), section 4.1, first data set: 10,000 and 5,000 images, batches of 128; damping on H^2
of 1e-8 in pretraining and 1e-6 in fine-tuning. When trained again the paper takes 6,000 and 3,000 steps; here it is a
twentieth of both, and the query is the mean over 2,000 of the 8,000 test images (each retraining ends with a pass over
them), so that hundreds of examples, two batch orders and three seeds fit into an hour of two cores.
"""

from experiments import paper
from experiments.paper import Plan
from experiments.settings import Settings
from experiments.training import Training
from stagetrace import Frozen
from stagetrace.progress import Progress

NAME = "cifar-frozen"
PLAN = Plan(
    name=NAME,
    dataset="cifar10",
    first_classes=(2, 6),
    link=Frozen("embedding"),
    pretraining=Training(epochs=30, batch=128, weight_decay=1e-3),
    finetuning=Training(epochs=30, batch=128, weight_decay=1e-3),
    again={"pretrain": 300, "finetune": 150},
    damping={"pretrain": 1e-8, "finetune": 1e-6},
    reference='r about 0.6 ("0.6 is reasonable to show a strong correlation", section 4.1), one run, n not given',
    orders=2,
    query_examples=2000,
    query_batch=1000,
)


def run(settings: Settings, progress: Progress) -> None:
    """See `experiments.paper`."""
    paper.run(PLAN, settings, progress)

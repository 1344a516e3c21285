"""`finetune-size`: does pretraining matter less after more fine-tuning?

Chen et al. (2020), section 4.4: the embedding learned from CIFAR-10's birds and frogs is trained further with a new
head on the other eight classes: model C on 5,000 examples, model D on three times as many with three times the steps
(the same number of epochs). The pretraining examples are scored against the loss on the whole test set, with the
proximal link at the paper's alpha of 0.01. The paper, one run: mean absolute score 0.15 for D, "much less" than for C,
whose number is not in the text.

C's examples are among D's. Both fine-tuning Hessians are averaged over 2,000 of their own examples. Training and
damping as in `similarity`. A first trial with pretraining that overfits gave a ratio of 1.42 (0.74 to 2.73; 3 seeds).
A data set without so many examples gives a third of them to C.
"""

from experiments.settings import Settings
from experiments.tasks import numbers_of, two_tasks
from experiments.two_finetunings import FINETUNING, Finetuning, compare
from stagetrace import Proximal
from stagetrace.progress import Progress

NAME = "finetune-size"
DATASET = "cifar10"
PRETRAINED = {"bird": 2, "frog": 6}
FINETUNE_EXAMPLES = 5000
TIMES = 3
SEEDS = 5
ALPHA = 0.01


def run(settings: Settings, progress: Progress) -> None:
    """Models C and D from one embedding, seed by seed."""
    folder = settings.folder(DATASET)
    first, second = two_tasks(folder, numbers_of(folder, PRETRAINED))
    few = min(settings.examples or FINETUNE_EXAMPLES, FINETUNE_EXAMPLES, len(second.train) // TIMES)
    link = Proximal("embedding", alpha=ALPHA)
    both = (
        Finetuning("C", f"{few:,} fine-tuning examples", second, few, FINETUNING, link),
        Finetuning("D", f"{TIMES * few:,} examples, {TIMES} times the steps", second, TIMES * few, FINETUNING, link),
    )
    compare(NAME, settings, first, both, SEEDS, progress)

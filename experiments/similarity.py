"""`similarity`: does pretraining matter more to a task that is like it?

Chen et al. (2020), section 4.3: an embedding learned from CIFAR-10's birds and frogs is kept, and a new head is
trained on task A (birds and frogs again) and, with the same settings, on task B (automobiles and deer). The pretraining
examples are scored against the test loss of each. The paper, one run, each score the sum over the test examples: mean
absolute score 0.055 for A and 0.025 for B.

Both tasks have as many fine-tuning examples, drawn by the seed. The ratio A over B is the same for sums and means over
the test examples where both test sets have one size; both are given.

Training is that of `cifar-frozen`, whose scores are compared with retraining; damping is the default, from each stage's
spectrum. The paper's 1e-8 and 1e-6 are almost the plain inverse, and these stages end with negative curvature, which
that amplifies. A first trial with pretraining that overfits (no weight decay, rate 3e-3, 40 epochs) and the dampings
1e-2 and 1e-4 gave a ratio of 1.03 (0.89 to 1.20).

A data set without ten classes: its first two fifths are the pretraining task and A, the next as many are B.
"""

from experiments.settings import Settings
from experiments.tasks import Task, numbers_of, two_tasks
from experiments.two_finetunings import FINETUNING, Finetuning, compare
from stagetrace import Frozen
from stagetrace.progress import Progress

NAME = "similarity"
DATASET = "cifar10"
PRETRAINED = {"bird": 2, "frog": 6}
OTHER = {"automobile": 1, "deer": 4}
FINETUNE_EXAMPLES = 5000
SEEDS = 5


def run(settings: Settings, progress: Progress) -> None:
    """Both tasks on one embedding, seed by seed."""
    like, unlike = _tasks(settings)
    examples = min(settings.examples or FINETUNE_EXAMPLES, FINETUNE_EXAMPLES, len(like.train), len(unlike.train))
    both = (
        Finetuning("A", "the pretraining task again", like, examples, FINETUNING, Frozen("embedding")),
        Finetuning("B", "another task", unlike, examples, FINETUNING, Frozen("embedding")),
    )
    compare(NAME, settings, like, both, SEEDS, progress)


def _tasks(settings: Settings) -> tuple[Task, Task]:
    """The pretraining task, and another of as many classes."""
    folder = settings.folder(DATASET)
    first, others = two_tasks(folder, numbers_of(folder, PRETRAINED))
    ten = len(first.classes) + len(others.classes) == 10
    return first, others.only(numbers_of(folder, OTHER) if ten else others.classes[: len(first.classes)])

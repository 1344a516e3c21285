"""`cifar`: two classes of CIFAR-10, then the other eight with a new head, all parameters trained further.

A network of 17,000 parameters is pretrained on some birds and frogs. From there the recorded training goes on: with
other birds and frogs, that the checkpoint has never seen, and then with eight other classes and a new head.
"""

from dataclasses import asdict, dataclass
from typing import final

import torch

from benchmarks.two_stage.chains import FINETUNE, PRETRAIN, Asked, Start, start_of
from experiments.checkpoints import Checkpoints, digest
from experiments.image_stages import pretrained, untrained
from experiments.images import Images
from experiments.tasks import Task, two_tasks
from experiments.training import SILENT, Training
from stagetrace import Chain, Query, Stage, Unrolled
from stagetrace.objectives import Classification
from stagetrace.validation import SGD, Adam, Steps

FIRST_CLASSES = (2, 6)
CHECKPOINT = Training(epochs=10, batch=128)


@final
@dataclass(frozen=True)
class Sizes:
    """base, first, second, tests: images of the checkpoint, of both recorded stages, and of the mean query.

    steps: of each recorded stage, in batches of `batch`; whole passes over its images, so that every order sees each
    as often. checkpoint: how it was trained.
    """

    base: int = 6000
    first: int = 1000
    second: int = 1000
    tests: int = 500
    steps: int = 60
    batch: int = 50
    checkpoint: Training = CHECKPOINT


FULL = Sizes()
QUICK = Sizes(base=20, first=20, second=20, tests=10, steps=4, batch=10, checkpoint=Training(epochs=2, batch=10))


def starts(asked: Asked, seed: int, singles: int) -> list[Start]:
    """The one chain of this family."""
    sizes = QUICK if asked.quick else FULL
    first, second = two_tasks(asked.data / "cifar10", FIRST_CLASSES)
    base_images, own = _parted(first.train, (sizes.base, sizes.first), seed)
    (others,) = _parted(second.train, (sizes.second,), seed)
    tests = second.test.drawn(sizes.tests, seed)
    base, model = untrained(seed, first, len(first.classes), len(second.classes))
    store = Checkpoints(asked.work / "checkpoints" / f"cifar-{seed}")
    checkpoint = sizes.checkpoint.seeded(seed)
    trained = pretrained(store, base, Task(first.classes, base_images, first.test), checkpoint, SILENT)
    model.embedding.load_state_dict(base.embedding.state_dict())
    going_on = Steps(Adam(3e-4, state=store.adam("pretrain")), sizes.steps, sizes.batch)
    tuning = Steps(SGD(0.01, momentum=0.9), sizes.steps, sizes.batch, schedule="cosine")
    chain = Chain(
        Stage(
            PRETRAIN,
            model=base,
            objective=Classification(),
            data=own.dataset,
            link=Unrolled(recording=going_on),
        ),
        Stage(
            FINETUNE,
            model=model,
            objective=Classification(),
            data=others.dataset,
            link=Unrolled("embedding", tuning),
        ),
    )
    facts = {
        "data set": "cifar10",
        "classes": [first.classes, second.classes],
        "sizes": asdict(sizes),
        "checkpoint": {"train": trained["train"], "test": trained["test"]},
        "optimisers": ["Adam(3e-4), state of the checkpoint's", "SGD(0.01, momentum=0.9), cosine"],
        "parameters": sum(p.numel() for p in model.parameters()),
        "rows": {"pretrain": digest(own.rows), "finetune": digest(others.rows), "tests": digest(tests.rows)},
    }
    query = Query(tests.dataset, batch_size=len(tests))
    return [start_of("cifar", seed, chain, query, singles, "embedding", None, facts)]


def _parted(images: Images, counts: tuple[int, ...], seed: int) -> list[Images]:
    """Disjoint parts, drawn by the seed; each in the data set's order."""
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
    return [images[part.sort().values] for part in order.split([*counts, len(order) - sum(counts)])[: len(counts)]]

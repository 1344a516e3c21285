"""The digits 0-3 with the trained network; and a network fine-tuned on the digits 4-9 from its convolutions."""

from pathlib import Path

from safetensors.torch import load_model, save_model

from benchmarks.setting import DATASET, PRETRAINED_CLASSES, Asked, small_network
from experiments.image_stages import untrained
from experiments.networks import ConvNet
from experiments.tasks import Task, two_tasks
from experiments.training import Training, train_classifier

FINETUNING, FINETUNE_EXAMPLES = Training(epochs=8), 4000


def pretrained(asked: Asked) -> tuple[Task, ConvNet]:
    task = asked.digits()
    return task, small_network(asked, task)


def finetuned(asked: Asked, folder: Path, base: ConvNet, *, frozen: bool) -> tuple[Task, ConvNet]:
    """The other digits, from the convolutions of `base`: kept, or trained further."""
    _, task = two_tasks(asked.data / DATASET, PRETRAINED_CLASSES)
    task = task.drawn(300 if asked.quick else FINETUNE_EXAMPLES, asked.seed)
    (model,) = untrained(asked.seed, task, len(task.classes))
    model.embedding.load_state_dict(base.embedding.state_dict())
    kept = folder / f"{'frozen' if frozen else 'proximal'}{'-quick' if asked.quick else ''}.safetensors"
    if kept.exists():
        load_model(model, kept)
    else:
        model.embedding.requires_grad_(not frozen)
        train_classifier(model, FINETUNING, task.train.pixels, task.train.labels)
        model.requires_grad_(True)
        kept.parent.mkdir(parents=True, exist_ok=True)
        save_model(model, str(kept))
    return task, model.eval()

"""Which pretraining digits hurt a fine-tuned model? Your checkpoints, your data set, one function.

    python -m experiments mnist-frozen --data DATA --out runs/digits      (trains both stages; any trainer would do)

    export STAGETRACE_MNIST_DATA=DATA/mnist                 # or a name on the Hugging Face Hub
    export STAGETRACE_MNIST_CHECKPOINTS=runs/digits/checkpoints
    stagetrace check examples/mnist.py:job
    stagetrace score examples/mnist.py:job --out runs/mnist

The first stage learned the digits 0-3; the second kept the convolutions and learned a new head for 4-9; the question is
what caused the mean loss on all test images of 4-9. Needs the extra `stagetrace[hf]` and pillow.
"""

import os
from pathlib import Path

import datasets
import numpy as np
import torch
from safetensors.torch import load_file, load_model
from torch import nn

from stagetrace import Chain, Frozen, Hessian, Lanczos, Query, Stage
from stagetrace.errors import DataError
from stagetrace.objectives import Classification

WEIGHT_DECAY = 1e-3  # what both stages were trained with; it belongs to their Hessians


class Digits(nn.Module):
    def __init__(self, classes):
        super().__init__()
        convolutions = nn.Conv2d(1, 8, 5, stride=2), nn.Tanh(), nn.Conv2d(8, 16, 5, stride=2), nn.Tanh()
        self.embedding = nn.Sequential(*convolutions, nn.Flatten())
        self.head = nn.Sequential(nn.Linear(256, 32), nn.Tanh(), nn.Linear(32, classes))

    def forward(self, pixels):
        return self.head(self.embedding(pixels))


def from_env(name, what):
    if not os.environ.get(name):
        raise DataError(f"the environment variable {name} is not set; let it name {what}")
    return os.environ[name]


def loaded(classes, checkpoint):
    if not checkpoint.is_file():
        raise DataError(
            f"there is no checkpoint {checkpoint}; STAGETRACE_MNIST_CHECKPOINTS names the folder that holds it"
        )
    model = Digits(classes)
    load_model(model, checkpoint)
    return model


def digits(split, first_label):
    """The split, decoded as it is read: pixels from 0 to 1, labels counted from the stage's first digit."""

    def decode(rows):
        pixels = [torch.from_numpy(np.asarray(image, dtype="float32") / 255)[None] for image in rows["image"]]
        return {"pixels": pixels, "labels": torch.tensor(rows["label"]) - first_label}

    return split.with_transform(decode)


def job():
    data = datasets.load_dataset(
        from_env("STAGETRACE_MNIST_DATA", "the MNIST data set's folder, or its name on the Hub")
    )
    folder = Path(
        from_env("STAGETRACE_MNIST_CHECKPOINTS", "the folder of pretrain.safetensors and finetune.safetensors")
    )
    rows = load_file(folder / "examples.safetensors")  # which training images each stage saw
    new_digits = [row for row, label in enumerate(data["test"]["label"]) if label >= 4]

    pretrain = Stage(
        "pretrain",
        model=loaded(4, folder / "pretrain.safetensors"),
        objective=Classification(),
        data=digits(data["train"].select(rows["pretrain"].tolist()), first_label=0),
        weight_decay=WEIGHT_DECAY,
    )
    finetune = Stage(
        "finetune",
        model=loaded(6, folder / "finetune.safetensors"),
        objective=Classification(),
        data=digits(data["train"].select(rows["finetune"].tolist()), first_label=4),
        link=Frozen("embedding"),
        weight_decay=WEIGHT_DECAY,
    )
    query = Query(digits(data["test"].select(new_digits), first_label=4))
    return (
        Chain(pretrain, finetune),
        query,
        {
            "curvature": {"pretrain": Hessian(examples=1000)},
            "solver": {"pretrain": Lanczos(damping=1e-2), "finetune": Lanczos(damping=1e-8, max_steps=2000)},
        },
    )

"""Small data sets in the Hugging Face layout, and every experiment cut short, called as a user calls it."""

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("datasets")
pytest.importorskip("matplotlib")
pytest.importorskip("scipy")
pytest.importorskip("transformers")
pytest.importorskip("accelerate")
pytest.importorskip("peft")
pytest.importorskip("bm25s")
pytest.importorskip("PIL")
import datasets
from PIL import Image

from experiments import __main__ as command
from experiments import (
    choices,
    cleansing,
    misclassified,
    paper,
    resolve,
    reweight,
    smoothness,
    tiny_chain,
    two_finetunings,
)
from experiments.language import cost, sentences
from experiments.language import experiment as language
from experiments.language.elmo import Shape
from experiments.training import Training
from experiments.transformer_chains import experiment as transformer_chains
from experiments.transformer_chains.models import Architecture
from experiments.transformer_chains.stages import LORA, THREE
from experiments.word_vectors import data as words_data
from experiments.word_vectors import experiment as word_vectors
from experiments.word_vectors import large
from experiments.word_vectors.data import Drawing
from stagetrace import Lanczos
from stagetrace.validation import Adam, Steps

BOTH = ("pretrain", "finetune")
FEW = Training(epochs=2, rate=5e-3, batch=8)
LOOSE = {stage: Lanczos(damping=0.1, max_steps=20) for stage in BOTH}
CUT = {
    "pretraining": Training(epochs=6, weight_decay=1e-3),
    "finetuning": Training(epochs=6, weight_decay=1e-3),
    "again": {"pretrain": 4, "finetune": 4},
    "rate": 1e-3,
    "count": 4,
    "seeds": 2,
    "together": 4,
}
CIFAR = CUT | {
    "pretraining": Training(epochs=6, weight_decay=1e-2),
    "finetuning": Training(epochs=6, weight_decay=1e-2),
    "again": {"pretrain": 3, "finetune": 3},
    "orders": 2,
    "count": 3,
    "seeds": 1,
    "together": 3,
}
TINY = Shape(character=3, filters=((1, 4), (2, 5)), highways=1, projection=4, cells=6)


def short(plan: transformer_chains.Plan) -> transformer_chains.Plan:
    """A plan with a very small model and a few steps."""
    recipe = replace(
        plan.recipe,
        architecture=Architecture(
            plan.recipe.architecture.family, vocabulary=120, hidden=8, layers=1, length=12, rank=2
        ),
        **dict.fromkeys(("pretraining", "middle", "finetuning", "adapting"), FEW),
        general=24,
        tweets=16,
        tests=8,
    )
    few: dict[str, Any] = {
        "groups": 3,
        "orders": 1,
        "seeds": 1,
        "again": dict.fromkeys(BOTH, 3),
        "curvature_examples": 8,
    }
    if plan.recipe.trainer:
        few["chains"] = (LORA, THREE)  # the longest, and the one with an adapter
    return replace(plan, recipe=recipe, **few)


SMALL_WORDS = replace(
    word_vectors.SMALL, words=30, width=2, lines=40, steps=60, drawing=Drawing(3, 6, 2), decay=(5e-3, 0.1)
)
SMALL_LANGUAGE = replace(language.SMALL, shape=TINY, words=(3, 8), sentences=60, tweets=40, tests=20, vocabulary=25)
COMPARED = (paper.OURS, paper.DEFAULT, paper.PAPERS, paper.GAUSS_NEWTON, paper.IDENTITY, "random")
PLANS = {
    "MNIST_FROZEN": replace(paper.MNIST_FROZEN, **CUT, compared=COMPARED),
    "CIFAR_FROZEN": replace(paper.CIFAR_FROZEN, **CIFAR),
    "CIFAR_UPDATED": replace(paper.CIFAR_UPDATED, **CIFAR),
    "IDENTITY_ABLATION": replace(paper.IDENTITY_ABLATION, **CUT),
}
SHORT: dict[Any, dict[str, Any]] = {
    paper: PLANS,
    tiny_chain: {"DECAYS": (1e-1, 3e-2), "HIDDEN": 4, "INPUTS": 16},
    resolve: {
        "DATASETS": {"mnist": (0, 1, 2, 3)},
        "COUNT": 5,
        "PROXIMITIES": (0.1,),
        "SHARES": (0.1, 0.5),
        "COLD": Steps(Adam(1e-2), steps=8, batch_size=20, start="cold", schedule="cosine"),
        "COLD_RUNS": 2,
    },
    smoothness: {
        "WAYS": {name: smoothness.WAYS[name] for name in ("SGD 0.005, three times the steps", "Adam 2e-3")},
        "STEPS": {"pretrain": 8, "finetune": 5},
        "BATCH": 10,
        "WIDTH": 4,
        "SIDE": 6,
        "SINGLES": 4,
        "GROUPS": 4,
        "SHARES": (0.05, 0.1),
        "HYBRIDS": ("Adam 2e-3",),
    },
    choices: {
        "SIZES": (1e-1,),
        "SUBSETS": (20,),
        "ALPHAS": (1.0,),
        "ON": Steps(Adam(1e-3), steps=3, batch_size=20),
        "FROM_SCRATCH": Steps(Adam(1e-2), steps=8, batch_size=20, start="cold"),
    },
    cleansing: {
        "PRETRAINING": Training(epochs=3, batch=32),
        "FINETUNING": Training(epochs=3, batch=32),
        "SEEDS": 2,
        "MODELS": 2,
        "SHARES": (0.1, 0.3),
        "SOLVERS": LOOSE,
    },
    two_finetunings: {
        "PRETRAINING": Training(epochs=4, batch=32),
        "FINETUNING": Training(epochs=4, batch=32),
        "SEEDS": 2,
        "SOLVERS": LOOSE,
    },
    misclassified: {
        "PRETRAINING": Training(epochs=4, batch=32),
        "FINETUNING": Training(epochs=1, batch=32),
        "QUERIES": 3,
        "SOLVERS": LOOSE,
    },
    words_data: {"SKIPPED": len(words_data.SPECIAL) + 2},
    word_vectors: {
        "SMALL": SMALL_WORDS,
        "AGAIN": {stage: Steps(Adam(1e-3), 3, 16) for stage in BOTH},
        "COUNT": 3,
        "FEW": 3,
        "ORDERS": 2,
    },
    large: {"LARGE": replace(SMALL_WORDS, width=3, steps=20, batch=16, dtype=torch.float32)},
}
SHORT |= {
    reweight: {
        "SEEDS": 2,
        "STEPS": 1,
        "ORDERS": {"cifar-updated": (1,), "bert": (1, 2)},
        "CHECKED": (5,),
        "CIFAR": PLANS["CIFAR_UPDATED"],
        "BERT": short(transformer_chains.BERT),
    },
    language: {
        "SMALL": SMALL_LANGUAGE,
        "PLANS": dict.fromkeys(BOTH, Training(epochs=2, rate=1e-2, batch=20)),
        "AGAIN": dict.fromkeys(BOTH, 2),
        "COUNT": 4,
        "SEEDS": 1,
        "ORDERS": 2,
        "HESSIAN_EXAMPLES": 10,
    },
    sentences: {"SAMPLED": 50, "SHOWN": 2},
    cost: {"PAPER": replace(SMALL_LANGUAGE, sentences=30, tests=1), "NEGATIVES": 8},
}
ROWS = {
    **{plan.name: paper.experiment(plan) for plan in PLANS.values()},
    **{
        plan.name: transformer_chains.experiment(short(plan))
        for plan in (transformer_chains.BERT, transformer_chains.GPT)
    },
    "resolve": replace(resolve.EXPERIMENT, seeds=1),
    "smoothness": replace(smoothness.EXPERIMENT, seeds=1),
    "word-vectors": replace(word_vectors.EXPERIMENT, seeds=1),
}
"""Of the table of experiments, those that are made of a plan or know how many seeds they have."""

Call = Callable[..., int]


@pytest.fixture(scope="session")
def call() -> Iterator[Call]:
    """The exit code of `python -m experiments WORDS`, everything cut short."""

    def called(*words: object) -> int:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", ["experiments", *map(str, words)])
            try:
                command.main()
            except SystemExit as end:
                return int(end.code or 0)
        return 0

    with pytest.MonkeyPatch.context() as patch:
        for module, values in SHORT.items():
            for name, value in values.items():
                patch.setattr(module, name, value)
        for name, row in ROWS.items():
            patch.setitem(command.EXPERIMENTS, name, row)
        yield called


def result_of(out: Path) -> dict[str, Any]:
    return json.loads((out / "result.json").read_text())


def write_images(
    folder: Path, *, classes: int, size: Sequence[int], counts: tuple[int, int], column: str = "image"
) -> None:
    """A train and a test split: each class is a bright bar in a place of its own, under noise."""
    generator = np.random.default_rng(0)
    features = datasets.Features({column: datasets.Image(), "label": datasets.ClassLabel(num_classes=classes)})
    folder.mkdir(parents=True)
    for split, count in zip(("train", "test"), counts, strict=True):
        labels = [place % classes for place in range(count)]
        pixels = generator.integers(0, 120, (count, *size), dtype=np.uint8)
        for picture, label in zip(pixels, labels, strict=True):
            row = 1 + label * (size[0] - 3) // classes
            picture[row : row + 2] = 255
        rows = {column: [Image.fromarray(picture) for picture in pixels], "label": labels}
        datasets.Dataset.from_dict(rows, features=features).to_parquet(folder / f"{split}-00000-of-00001.parquet")


def write_texts(folder: Path, **columns: dict[str, list[Any]]) -> Path:
    """A data set for each name, the same rows in both splits."""
    for name, rows in columns.items():
        (folder / name).mkdir()
        for split in ("train", "test"):
            datasets.Dataset.from_dict(rows).to_parquet(folder / name / f"{split}-00000-of-00001.parquet")
    return folder


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What the `datasets` library caches goes with the tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path_factory.mktemp("cache")))
        datasets.disable_progress_bars()
        yield


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """Batches of fifty small images: a second thread costs more than it brings."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder given as --data: `mnist`, and `colours` with other names, sizes and classes."""
    folder = tmp_path_factory.mktemp("data")
    write_images(folder / "mnist", classes=10, size=(28, 28), counts=(300, 80))
    write_images(folder / "colours", classes=5, size=(15, 17, 3), counts=(60, 25), column="img")
    return folder


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder given as --data: `cifar10`, its classes by number only."""
    folder = tmp_path_factory.mktemp("photos")
    write_images(folder / "cifar10", classes=10, size=(16, 16, 3), counts=(240, 80))
    return folder

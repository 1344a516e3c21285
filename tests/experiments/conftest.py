"""Small image data sets in the Hugging Face layout, and the experiment run on one of them."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

datasets = pytest.importorskip("datasets")
pytest.importorskip("matplotlib")
Image = pytest.importorskip("PIL.Image")


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


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What the `datasets` library caches goes with the tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path_factory.mktemp("cache")))
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

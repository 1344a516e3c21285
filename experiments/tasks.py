"""Two tasks from one data set: the first stage learns some classes, the second the others."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import final

import torch

from experiments.images import Images, class_names, read_images
from experiments.settings import Settings
from stagetrace.errors import DataError


@final
@dataclass(frozen=True)
class Task:
    """One stage's classes, by their labels in the data set; in `train` and `test` they are numbered from 0."""

    classes: tuple[int, ...]
    train: Images
    test: Images

    def drawn(self, count: int | None, seed: int) -> "Task":
        """At most `count` training examples, drawn without replacement, in the data set's order; the test set stays."""
        return Task(self.classes, self.train.drawn(count, seed), self.test)

    def only(self, classes: Sequence[int]) -> "Task":
        """The examples of some of the classes, by their labels in the data set."""
        kept = tuple(label for label in self.classes if label in classes)
        places = torch.tensor([self.classes.index(label) for label in kept])
        return Task(kept, *(_renumbered(images, places.tolist()) for images in (self.train, self.test)))

    def to(self, device: torch.device) -> "Task":
        return Task(self.classes, self.train.to(device), self.test.to(device))


def two_tasks(folder: Path, first_classes: Sequence[int]) -> tuple[Task, Task]:
    """The given classes, and all others; a data set without ten classes gives its first two fifths to the first task.

    Raises:
        DataError: fewer than four classes, or a task without test examples.
    """
    train, test = read_images(folder, "train"), read_images(folder, "test")
    classes: list[int] = sorted(set(train.labels.tolist()))
    if len(classes) < 4:
        raise DataError(f"{folder} has {len(classes)} classes; two stages need at least 4, two for each")
    first = tuple(first_classes) if len(classes) == 10 else tuple(classes[: max(2, 2 * len(classes) // 5)])
    second = tuple(label for label in classes if label not in first)
    return _task(first, train, test, folder), _task(second, train, test, folder)


def numbers_of(folder: Path, names: Mapping[str, int]) -> tuple[int, ...]:
    """The numbers of these classes in the data set, ascending, by name; those given where it has no such names."""
    found = class_names(folder, "train")
    return tuple(sorted(map(found.index, names) if set(names) <= set(found) else names.values()))


def tasks_of(settings: Settings, own: str, first_classes: Sequence[int], finetune_examples: int) -> tuple[Task, Task]:
    """Both tasks as the command line asked for them: the data set, the draws and the device."""
    first, second = two_tasks(settings.folder(own), first_classes)
    first = first.drawn(settings.examples, settings.seed)
    second = second.drawn(settings.most(finetune_examples), settings.seed)
    return first.to(settings.device), second.to(settings.device)


def _task(classes: tuple[int, ...], train: Images, test: Images, folder: Path) -> Task:
    parts = [_renumbered(images, classes) for images in (train, test)]
    for part, split in zip(parts, ("train", "test"), strict=True):
        if len(part) == 0:
            raise DataError(
                f"{folder}: the split '{split}' has no example of the classes {', '.join(map(str, classes))}"
            )
    return Task(classes, *parts)


def _renumbered(images: Images, classes: Sequence[int]) -> Images:
    """The images of these classes, labels counted from 0."""
    chosen = images[torch.isin(images.labels, torch.tensor(tuple(classes))).nonzero()[:, 0]]
    return Images(chosen.pixels, torch.searchsorted(torch.tensor(sorted(classes)), chosen.labels), chosen.rows)

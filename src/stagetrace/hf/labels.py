"""Labels as a data set has them -> as the loss wants them."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, final

from stagetrace.errors import DataError, refuse
from stagetrace.hf.task import Task
from stagetrace.objectives.tokens import IGNORED


@final
@dataclass(frozen=True)
class Labels:
    """Checks one label and turns it into numbers; names are looked up in the model's `config.label2id`.

    count: the model's `config.num_labels`; of a language model its vocabulary (0 where it is not known).
    """

    task: Task
    count: int
    label2id: Mapping[str, int]

    @staticmethod
    def of(task: Task, config: Any) -> "Labels":
        """The labels of a model; for a language model its vocabulary."""
        if task.writes or task in (Task.MASKED, Task.CAUSAL):
            writes: Any = getattr(config, "get_text_config", lambda **_: config)(decoder=True)
            count: Any = getattr(config, "vocab_size", getattr(writes, "vocab_size", None))
        else:
            count = getattr(config, "num_labels", None)
        return Labels(task, count if isinstance(count, int) else 0, dict(getattr(config, "label2id", None) or {}))

    def read(self, label: Any, where: str) -> Any:
        """A class index, a float (or `count` of them), a token, or the label as it is where nothing is known of it.

        Raises:
            DataError: the label is of another kind, unknown, or out of range; `where` names the example.
        """
        label = label.tolist() if hasattr(label, "tolist") else label
        if label is None:
            raise DataError(f"{where} is None; leave out the examples without a label, or label them")
        match self.task:
            case Task.CLASSIFICATION | Task.TOKENS:
                return self._class(label, where)
            case Task.REGRESSION | Task.MULTI_LABEL:
                return self._numbers(label, where)
            case Task.MASKED | Task.CAUSAL | Task.SEQ2SEQ | Task.SPEECH:
                return self._token(label, where)
            case Task.CHOICE:
                return self._choice(label, where)
            case _:
                return label

    def _class(self, label: Any, where: str) -> int:
        if isinstance(label, str):
            if label not in self.label2id:
                raise DataError(f"{where}: the model's config.label2id has no '{label}'; it has {list(self.label2id)}")
            return self.label2id[label]
        if isinstance(label, (list, tuple)):
            raise DataError(
                f"{where}: a class must be a whole number or a name, got {label!r}; for several labels of an example "
                "set config.problem_type = 'multi_label_classification', as in training, and give floats"
            )
        if not isinstance(label, int):
            raise DataError(f"{where}: a class must be a whole number or a name, got {label!r}")
        if not 0 <= label < self.count:
            hint = "; -1 stands for no label, as in test splits without answers" if label == -1 else ""
            hint = f"; {IGNORED} stands for no label" if label == IGNORED else hint
            raise DataError(f"{where}: class {label} is not one of the model's 0 to {self.count - 1}{hint}")
        return int(label)

    def _choice(self, label: Any, where: str) -> int:
        if not isinstance(label, int) or isinstance(label, bool) or label < 0:
            raise DataError(f"{where}: the right choice must be its place, 0 for the first one, got {label!r}")
        return label

    def _numbers(self, label: Any, where: str) -> float | list[float]:
        values: list[Any] = list(label) if isinstance(label, (list, tuple)) else [label]
        if len(values) != self.count or not all(isinstance(value, (int, float)) for value in values):
            raise DataError(f"{where}: the model predicts {self.count} number(s), got the label {label!r}")
        numbers = [float(value) for value in values]
        if not all(math.isfinite(number) for number in numbers):
            raise DataError(f"{where}: a label must be finite, got {label!r}")
        if self.task is Task.MULTI_LABEL and not all(0 <= number <= 1 for number in numbers):
            raise DataError(f"{where}: each of several labels must be 0 or 1 (or between), got {label!r}")
        return numbers if isinstance(label, (list, tuple)) else numbers[0]

    def _token(self, label: Any, where: str) -> int:
        if not isinstance(label, int) or isinstance(label, bool):
            raise DataError(f"{where}: the label of a token must be a whole number, got {label!r}")
        if label < 0 or (self.count and label >= self.count):
            raise DataError(
                f"{where}: the label {label} is no token of the model's vocabulary, 0 to {self.count - 1}, nor "
                f"{IGNORED} for one that is not predicted"
            )
        return label


def check_names(features: Any, column: str | None, labels: Labels, where: str) -> None:
    """Refuse a column of classes whose names the model numbers in another way: its indices mean something else.

    Names that differ in case only are the same; a column whose names the model has none of is let be.

    Args:
        features: the `features` of a `datasets.Dataset`, or None.

    Raises:
        DescriptionError: with both orders.
    """
    feature = features.get(column) if isinstance(features, Mapping) and column else None
    feature = getattr(feature, "feature", feature)  # of a list of classes
    names: list[str] = list(getattr(feature, "names", None) or ())
    known = {str(name).lower(): index for name, index in labels.label2id.items()}
    found = [known.get(name.lower()) for name in names]
    if all(index is None for index in found) or found == list(range(len(names))):
        return
    ordered = sorted(labels.label2id, key=labels.label2id.__getitem__)
    unknown = [name for name, index in zip(names, found, strict=True) if index is None]
    todo = (
        f"type: data.align_labels_with_mapping(model.config.label2id, '{column}')"
        if not unknown
        else f"the model has no {', '.join(map(repr, unknown))}: set model.config.label2id and id2label to the classes "
        "of training, or rename those of the column"
    )
    refuse(f"{where}: column '{column}' numbers its classes {names}, the model {ordered}; {todo}")

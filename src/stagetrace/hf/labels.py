"""Labels as a data set has them -> as the loss wants them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, final

from stagetrace.errors import DataError, refuse
from stagetrace.hf.task import Task


@final
@dataclass(frozen=True)
class Labels:
    """Checks one label and turns it into numbers; names are looked up in the model's `config.label2id`.

    count: the model's `config.num_labels`.
    """

    task: Task
    count: int
    label2id: Mapping[str, int]

    @staticmethod
    def of(task: Task, config: Any) -> "Labels":
        """The labels of a model."""
        return Labels(task, getattr(config, "num_labels", 0), dict(getattr(config, "label2id", None) or {}))

    def read(self, label: Any, where: str) -> Any:
        """A class index, a float (or `count` of them), or the label as it is where nothing is known of it.

        Raises:
            DataError: the label is of another kind, unknown, or out of range; `where` names the example.
        """
        label = label.tolist() if hasattr(label, "tolist") else label
        match self.task:
            case Task.CLASSIFICATION | Task.TOKENS:
                return self._class(label, where)
            case Task.REGRESSION | Task.MULTI_LABEL:
                return self._numbers(label, where)
            case _:
                return label

    def _class(self, label: Any, where: str) -> int:
        if isinstance(label, str):
            if label not in self.label2id:
                raise DataError(f"{where}: the model's config.label2id has no '{label}'; it has {list(self.label2id)}")
            return self.label2id[label]
        if not isinstance(label, int):
            raise DataError(f"{where}: a class must be a whole number or a name, got {label!r}")
        if not 0 <= label < self.count:
            raise DataError(f"{where}: class {label} is not one of the model's 0 to {self.count - 1}")
        return int(label)

    def _numbers(self, label: Any, where: str) -> float | list[float]:
        values: list[Any] = list(label) if isinstance(label, (list, tuple)) else [label]
        if len(values) != self.count or not all(isinstance(value, (int, float)) for value in values):
            raise DataError(f"{where}: the model predicts {self.count} number(s), got the label {label!r}")
        numbers = [float(value) for value in values]
        return numbers if isinstance(label, (list, tuple)) else numbers[0]


def check_names(features: Any, column: str | None, labels: Labels, where: str) -> None:
    """Refuse a column of classes whose names the model knows in another order: its indices mean something else.

    Args:
        features: the `features` of a `datasets.Dataset`, or None.

    Raises:
        DescriptionError: with both orders.
    """
    feature = features.get(column) if isinstance(features, Mapping) and column else None
    feature = getattr(feature, "feature", feature)  # of a list of classes
    names: list[str] | None = getattr(feature, "names", None)
    if not names or set(names) != set(labels.label2id):
        return
    ordered = sorted(labels.label2id, key=labels.label2id.__getitem__)
    if names != ordered:
        refuse(
            f"{where}: column '{column}' numbers its classes {names}, the model {ordered}; type: "
            f"data.align_labels_with_mapping(model.config.label2id, '{column}')"
        )

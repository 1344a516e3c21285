"""Trained stages on disk: a killed experiment finds the stages that it had finished, and trains no stage twice.

FOLDER/<stage>.safetensors        the weights (a language model has a folder of its own, as `save_pretrained` writes it)
FOLDER/<stage>.json               the settings and data they came from, and how training went; written last
FOLDER/<stage>.adam.safetensors   where Adam ended, for training that goes on; by parameter number and moment
FOLDER/examples.safetensors       for each stage, its examples' rows in the data set's training split
"""

import hashlib
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from safetensors.torch import load_file, load_model, save_file, save_model
from torch import Tensor, nn

from stagetrace.errors import ResultsError
from stagetrace.results.files import atomic, read_as, write_text
from stagetrace.results.jsonable import differences, format_differences, json_text, read_json

Record = dict[str, Any]


@final
@dataclass(frozen=True)
class Checkpoints:
    """The store of one seed's stages."""

    folder: Path

    def trained(
        self, stage: str, model: nn.Module | None, given: Mapping[str, Any], train: Callable[[], Record]
    ) -> Record:
        """Put a stage's weights into `model`: those on disk if they came from the same settings, or newly trained ones.

        model: None where `train` writes the weights itself.
        given: what the weights depend on, as plain values.
        train: trains the model in place and returns how it went; its entry `adam` is the optimiser's `state_dict()`.

        Returns:
            What `train` returned, now or when the weights were made, with the seconds that it took.

        Raises:
            ResultsError: the folder holds this stage trained with other settings; the message lists what differs.
        """
        weights, record = self.folder / f"{stage}.safetensors", self.folder / f"{stage}.json"
        given = json.loads(json.dumps(given))
        if record.exists() and (model is None or weights.exists()):
            kept = _read(record)
            changed = differences(kept["settings"], given)
            if changed:
                raise ResultsError(
                    f"{self.folder} holds the stage '{stage}' trained with other settings; give another --out, or "
                    f"delete that folder:\n{format_differences(changed)}"
                )
            if model is not None:
                load_model(model, weights)
                model.eval()
            return kept["training"]
        started = time.perf_counter()
        facts = train()
        facts["seconds"] = time.perf_counter() - started
        self._keep_adam(stage, facts.pop("adam", None))
        if model is not None:
            with atomic(weights) as temporary:
                save_model(model, str(temporary))
        write_text(record, json_text({"settings": given, "training": facts}))
        return facts

    def keep_rows(self, rows: Mapping[str, Tensor]) -> None:
        """Write which rows of the training split each stage saw, in the order of its scores."""
        with atomic(self.folder / "examples.safetensors") as temporary:
            save_file({stage: numbers.contiguous() for stage, numbers in rows.items()}, str(temporary))

    def _keep_adam(self, stage: str, state: Mapping[str, Any] | None) -> None:
        if state is None:
            return
        flat = {f"{number}.{name}": value for number, entry in state["state"].items() for name, value in entry.items()}
        with atomic(self.folder / f"{stage}.adam.safetensors") as temporary:
            save_file({name: value.contiguous() for name, value in flat.items()}, str(temporary))

    def adam(self, stage: str) -> Record:
        """Where the stage's Adam ended, as `state_dict()` gives it."""
        entries = dict[int, dict[str, Tensor]]()
        for key, value in load_file(self.folder / f"{stage}.adam.safetensors").items():
            number, name = key.split(".")
            entries.setdefault(int(number), {})[name] = value
        return {"state": entries, "param_groups": [{"params": sorted(entries)}]}


def digest(*tensors: Tensor) -> str:
    """SHA-256 of the numbers of some tensors."""
    sha = hashlib.sha256()
    for tensor in tensors:
        sha.update(tensor.detach().cpu().numpy().tobytes())
    return sha.hexdigest()


def _read(path: Path) -> Record:
    with read_as(path, "a trained stage", "delete it, and the stage is trained again"):
        record = read_json(path)
        return {"settings": record["settings"], "training": record["training"]}

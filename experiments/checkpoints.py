"""Trained stages on disk: a killed experiment finds the stages that it had finished, and trains no stage twice.

OUT/checkpoints/<stage>.safetensors   the weights
OUT/checkpoints/<stage>.json          the settings and data they came from, and what the training said; written last
OUT/checkpoints/<stage>.adam.safetensors   where Adam ended, for training that goes on; by parameter number and moment
OUT/checkpoints/examples.safetensors  for each stage, its examples' rows in the data set's training split
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, load_model, save_file, save_model
from torch import Tensor, nn

from experiments.images import Images
from stagetrace.errors import ResultsError
from stagetrace.results.descriptions import differences, format_differences
from stagetrace.results.files import atomic

Record = dict[str, Any]


def trained(
    folder: Path, stage: str, model: nn.Module, settings: Mapping[str, Any], train: Callable[[], Record]
) -> Record:
    """Put a stage's weights into `model`: those on disk if they came from the same settings, or newly trained ones.

    settings: what the weights depend on.
    train: trains that model in place and says how it went.

    Returns:
        What `train` said, now or when the weights were made.

    Raises:
        ResultsError: the folder holds this stage trained with other settings; the message lists what differs.
    """
    weights, record = folder / f"{stage}.safetensors", folder / f"{stage}.json"
    if record.exists() and weights.exists():
        before = _read(record)
        changed = differences(before["settings"], dict(settings))
        if changed:
            raise ResultsError(
                f"{folder} holds the stage '{stage}' trained with other settings; give another --out, or delete that "
                f"folder:\n{format_differences(changed)}"
            )
        load_model(model, weights)
        model.eval()
        return before["training"]
    said = train()
    with atomic(weights) as temporary:
        save_model(model, str(temporary))
    with atomic(record) as temporary:
        temporary.write_text(json.dumps({"settings": settings, "training": said}, indent=2) + "\n")
    return said


def keep_rows(folder: Path, rows: Mapping[str, Tensor]) -> None:
    """Write which rows of the training split each stage saw, in the order of its scores."""
    with atomic(folder / "examples.safetensors") as temporary:
        save_file({stage: numbers.contiguous() for stage, numbers in rows.items()}, str(temporary))


def keep_state(folder: Path, stage: str, state: Mapping[str, Any]) -> None:
    """Write an Adam optimiser's `state_dict()`."""
    flat = {f"{number}.{name}": value for number, entry in state["state"].items() for name, value in entry.items()}
    with atomic(folder / f"{stage}.adam.safetensors") as temporary:
        save_file({name: value.contiguous() for name, value in flat.items()}, str(temporary))


def saved_state(folder: Path, stage: str) -> Record:
    """Read it back, as `state_dict()` gives it."""
    entries: dict[int, dict[str, Tensor]] = {}
    for key, value in load_file(folder / f"{stage}.adam.safetensors").items():
        number, name = key.split(".")
        entries.setdefault(int(number), {})[name] = value
    return {"state": entries, "param_groups": [{"params": sorted(entries)}]}


def digest(images: Images) -> str:
    """SHA-256 of the examples: pixels, labels and rows."""
    sha = hashlib.sha256()
    for tensor in (images.pixels, images.labels, images.rows):
        sha.update(tensor.detach().cpu().numpy().tobytes())
    return sha.hexdigest()


def _read(path: Path) -> Record:
    try:
        record = json.loads(path.read_text())
        return {"settings": record["settings"], "training": record["training"]}
    except (OSError, ValueError, LookupError, TypeError) as cause:
        raise ResultsError(f"{path} cannot be read ({cause}); delete it, and the stage is trained again") from cause

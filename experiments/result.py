"""`OUT/result.json`: the numbers, and all that is needed to judge them."""

import json
import os
import platform
import re
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

import stagetrace
from experiments.settings import Settings
from stagetrace.results.files import atomic
from stagetrace.results.jsonable import to_json
from stagetrace.results.manifest import versions
from stagetrace.results.sign import SIGN, UNIT


def write_result(name: str, settings: Settings, fields: dict[str, Any]) -> Path:
    """Write the result in one step; an experiment's own fields stand between what was asked and what it ran on.

    Raises:
        ResultsError: the file system refused.
        DescriptionError: a field that JSON cannot hold.
    """
    path = settings.out / "result.json"
    whole = {
        "experiment": name,
        "sign": SIGN,
        "unit": UNIT,
        "asked": {"seed": settings.seed, "examples": settings.examples, "dataset": dataset_name(settings)},
        **fields,
        "versions": {
            **versions(),
            "stagetrace": stagetrace.__version__,
            **{package: version(package) for package in ("datasets", "numpy", "safetensors")},
        },
        "hardware": hardware(settings.device),
    }
    with atomic(path) as temporary:
        temporary.write_text(_compact(json.dumps(to_json(whole, "result.json"), indent=1, allow_nan=False)) + "\n")
    return path


def _compact(text: str) -> str:
    """JSON with each list of numbers on one line: hundreds of intervals stay readable, and files small."""
    return re.sub(r"\[\s+([-+\d.e,\s]+?)\s+\]", lambda found: f"[{' '.join(found[1].split())}]", text)


def dataset_name(settings: Settings) -> str | None:
    """The stand-in's folder name; its place on this machine is nobody's business."""
    return Path(settings.dataset).name if settings.dataset else None


def hardware(device: torch.device) -> dict[str, Any]:
    """What it ran on, in general words."""
    kind = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    return {"device": device.type, "kind": kind, "cores": os.cpu_count(), "threads": torch.get_num_threads()}

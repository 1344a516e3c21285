"""A fit kept as a file: safetensors, found again by a digest of all that it depends on."""

# safetensors leaves out some of its types.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from stagetrace.curvature.ekfac.blocks import Block, Form
from stagetrace.curvature.ekfac.fit import Plan
from stagetrace.errors import ResultsError, first_line
from stagetrace.parallel import world
from stagetrace.stages.bound import BoundStage
from stagetrace.stages.fingerprint import SCHEME, fingerprint_stage
from stagetrace.taps.layout import Layout, Piece

__all__ = ["FORMAT", "kept_or_fitted", "read", "write"]

FORMAT = 1
"""The version of the file; another one is fitted anew and not read."""

_RECORD = "ekfac"


def kept_or_fitted(
    folder: str | Path | None, bound: BoundStage, plan: Plan, fitted: Callable[[], Sequence[Block]]
) -> Sequence[Block]:
    """The blocks that a folder keeps for this stage and these settings; else fitted, and kept there.

    Raises:
        ResultsError: the file is damaged, or the folder cannot be written.
    """
    digest = None if folder is None else _digest(bound, plan)
    if folder is None or digest is None:
        return fitted()
    path = Path(folder) / f"ekfac-{bound.name}-{digest[:16]}.safetensors"
    if world().share(path.exists()):
        return read(path, digest, bound.trained.device)
    blocks = fitted()
    if world().is_first:
        write(path, digest, blocks)
    return blocks


def write(path: Path, digest: str, blocks: Sequence[Block]) -> None:
    """Write the blocks, atomically."""
    tensors: dict[str, Tensor] = {}
    for number, block in enumerate(blocks):
        for name, tensor in (("values", block.values), ("left", block.left), ("right", block.right)):
            if tensor is not None:
                tensors[f"{number}.{name}"] = tensor.cpu().contiguous()
    layouts = [{**asdict(block.layout), "form": block.form} for block in blocks]
    record = {"format": FORMAT, "digest": digest, "content": _content(tensors), "blocks": layouts}
    temporary = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(tensors, temporary, {_RECORD: json.dumps(record)})
        os.replace(temporary, path)
    except (OSError, SafetensorError) as cause:
        temporary.unlink(missing_ok=True)
        raise ResultsError(
            f"{path}: the fit of EKFAC cannot be written ({first_line(cause)}); give another cache="
        ) from cause


def read(path: Path, digest: str, device: torch.device) -> list[Block]:
    """The blocks of a file, checked against the digest and against their own.

    Raises:
        ResultsError: it is damaged, of another version or of another stage.
    """
    try:
        with safe_open(path, framework="pt") as file:
            record: dict[str, Any] = json.loads((file.metadata() or {})[_RECORD])
            tensors = {name: cast("Tensor", file.get_tensor(name)) for name in file.keys()}  # noqa: SIM118
        if record["format"] != FORMAT or record["digest"] != digest or record["content"] != _content(tensors):
            raise ValueError("it is of another version or another stage, or damaged")
        return [_block(number, given, tensors, device) for number, given in enumerate(record["blocks"])]
    except (OSError, SafetensorError, ValueError, LookupError, TypeError) as cause:
        raise ResultsError(
            f"{path} is no fit of EKFAC for this stage ({first_line(cause)}); remove the file, and it is fitted anew"
        ) from cause


def _block(number: int, given: dict[str, Any], tensors: dict[str, Tensor], device: torch.device) -> Block:
    pieces = tuple(Piece(**piece) for piece in given["pieces"])
    form: Form = given["form"]
    sides = [
        tensors[name].to(device) if (name := f"{number}.{side}") in tensors else None for side in ("left", "right")
    ]
    return Block(Layout(pieces, given["axis"], given["flat"]), form, tensors[f"{number}.values"].to(device), *sides)


def _digest(bound: BoundStage, plan: Plan) -> str | None:
    """Of all that a fit depends on; None where something cannot be identified, and so not be kept."""
    stage = fingerprint_stage(bound)
    settings = {"draws": plan.draws, "seed": plan.seed, "exact": plan.exact, "examples": _numbers(plan.indices)}
    inherited = sorted(bound.inherited_from)
    text = json.dumps([FORMAT, SCHEME, torch.__version__, stage, settings, inherited], sort_keys=True, default=str)
    return None if "unidentified" in text else sha256(text.encode()).hexdigest()


def _numbers(indices: Sequence[int]) -> str:
    return sha256(json.dumps(sorted(indices)).encode()).hexdigest()


def _content(tensors: dict[str, Tensor]) -> str:
    seal = sha256()
    for name, tensor in sorted(tensors.items()):
        seal.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        seal.update(tensor.contiguous().view(torch.uint8).numpy().tobytes())
    return seal.hexdigest()

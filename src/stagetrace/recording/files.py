"""A recording on disk: plain files, each whole or not there, each with its digest in `recording.json`.

DIR/recording.json                     what was trained and how, which steps and states there are, every file's digest
DIR/steps/part-00000.parquet           a row a batch: step, examples, loss, generators; the step's settings on its first
DIR/inputs/part-00000.safetensors      the batches' tensors, named step.batch.place
DIR/states/step-00000000.safetensors   values, buffers, the optimiser's slots and the average before that step

They are forced onto the disk once, at the end: a training that is killed leaves its files whole; a machine that loses
its power may not, which their digests show.
"""

# pyarrow has no type information, and safetensors leaves out some of its types.
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportUnknownParameterType=false

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from stagetrace.recording.content import Written
from stagetrace.recording.step import Clip, Micro, State, Step
from stagetrace.results.files import atomic

FORMAT = 1
RECORD = "recording.json"

_COLUMNS = pa.schema(
    [
        ("step", pa.int64()),
        ("ids", pa.list_(pa.int64())),
        ("loss", pa.float64()),
        ("content", pa.string()),  # the structure of its tensors in inputs/, or the digest alone
        ("generators", pa.map_(pa.string(), pa.binary())),
        ("modules", pa.string()),  # in eval mode meanwhile
        ("autocast", pa.list_(pa.string())),  # mixed precision: the kind of device and the dtype; null: none
        ("settings", pa.string()),  # groups, clips, norm, resting, average, as JSON; null but in a step's first row
    ]
)


def steps_name(part: int) -> str:
    """The file of a part of the steps, relative to the folder."""
    return f"steps/part-{part:05d}.parquet"


def inputs_name(part: int) -> str:
    """The file of their batches."""
    return f"inputs/part-{part:05d}.safetensors"


def state_name(step: int) -> str:
    """The file of the state before a step."""
    return f"states/step-{step:08d}.safetensors"


def write_steps(folder: Path, part: int, first: int, steps: Sequence[Step]) -> list[str]:
    """Write consecutive steps, `first` the number of the first. Returns the names of the files."""
    rows, tensors = list[dict[str, Any]](), dict[str, Tensor]()
    for number, step in enumerate(steps, first):
        for place, micro in enumerate(step.micros):
            structure = micro.content
            if not isinstance(structure, str):
                structure, found = structure
                tensors |= {f"{number}.{place}.{name}": tensor.contiguous() for name, tensor in found.items()}
            rows.append(_row(number, step if place == 0 else None, micro, structure))
    names = [steps_name(part)]
    with atomic(folder / names[0], forced=False) as temporary:
        pq.write_table(pa.Table.from_pylist(rows, _COLUMNS), temporary, compression="zstd")
    if tensors:
        names.append(inputs_name(part))
        _save(folder / names[1], tensors, {})
    return names


def _row(number: int, step: Step | None, micro: Micro, structure: str) -> dict[str, Any]:
    settings = None
    if step is not None:
        clips = [[list(clip.names), clip.limit, clip.kind, clip.norm] for clip in step.clips]
        said = {"groups": step.groups, "clips": clips, "norm": step.norm, "resting": step.resting}
        said |= {} if step.average is None else {"average": step.average}
        settings = json.dumps(said)
    return {
        "step": number,
        "ids": micro.ids,
        "loss": micro.loss,
        "content": structure,
        "generators": [(device, state.numpy().tobytes()) for device, state in micro.generators.items()],
        "modules": json.dumps(micro.still),
        "autocast": micro.autocast,
        "settings": settings,
    }


def read_steps(folder: Path, part: int, *, inputs: bool) -> dict[int, Step]:
    """The steps of a part, by number. inputs: whether their batches are among the files."""
    found: dict[int, tuple[Mapping[str, Any], list[Micro]]] = {}
    tensors = _read(folder / inputs_name(part))[0] if inputs and (folder / inputs_name(part)).exists() else {}
    for row in pq.read_table(folder / steps_name(part)).to_pylist():
        micros = found.setdefault(row["step"], (json.loads(row["settings"] or "{}"), []))[1]
        content: Written | str = row["content"]
        if inputs:
            prefix = f"{row['step']}.{len(micros)}."
            held = {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
            content = row["content"], held
        states = {device: torch.frombuffer(bytearray(state), dtype=torch.uint8) for device, state in row["generators"]}
        still, autocast = tuple(json.loads(row["modules"])), row["autocast"]
        micros.append(Micro(tuple(row["ids"]), content, row["loss"], states, still, autocast and tuple(autocast)))
    return {number: _step(said, micros) for number, (said, micros) in found.items()}


def _step(said: Mapping[str, Any], micros: Sequence[Micro]) -> Step:
    clips = tuple(Clip(tuple(names), *rest) for names, *rest in said["clips"])
    return Step(micros, said["groups"], clips, said["norm"], tuple(said["resting"]), said.get("average"))


def write_state(folder: Path, step: int, state: State) -> str:
    """Write the state before a step. Returns the name of the file."""
    tensors = {f"value/{name}": value for name, value in state.values.items()}
    tensors |= {f"buffer/{name}": buffer for name, buffer in state.buffers.items()}
    tensors |= {f"average/{name}": value for name, value in state.average.items()}
    plain: dict[str, dict[str, Any]] = {}
    for name, slots in state.slots.items():
        for slot, value in slots.items():
            if isinstance(value, Tensor):
                tensors[f"slot/{slot}/{name}"] = value
            else:
                plain.setdefault(name, {})[slot] = value
    name = state_name(step)
    _save(folder / name, {key: _alone(tensor) for key, tensor in tensors.items()}, {"slots": json.dumps(plain)})
    return name


def read_state(folder: Path, step: int) -> State:
    """The state before a step."""
    tensors, said = _read(folder / state_name(step))
    slots: dict[str, dict[str, Any]] = {name: dict(plain) for name, plain in json.loads(said["slots"]).items()}
    found: dict[str, dict[str, Tensor]] = {"value": {}, "buffer": {}, "average": {}}
    for key, tensor in tensors.items():
        kind, _, name = key.partition("/")
        if kind == "slot":
            slot, _, name = name.partition("/")
            slots.setdefault(name, {})[slot] = tensor
        else:
            found[kind][name] = tensor
    return State(found["value"], found["buffer"], slots, found["average"])


def _alone(tensor: Tensor) -> Tensor:
    """On the CPU, in memory of its own: safetensors refuses what is shared."""
    return tensor.detach().cpu().clone(memory_format=torch.contiguous_format)


def _save(path: Path, tensors: Mapping[str, Tensor], said: Mapping[str, str]) -> None:
    with atomic(path, forced=False) as temporary:
        try:
            save_file(dict(tensors), temporary, dict(said))
        except SafetensorError as cause:
            raise OSError(str(cause)) from cause


def _read(path: Path) -> tuple[dict[str, Tensor], Mapping[str, str]]:
    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in _sorted(file.keys())}, file.metadata() or {}


def _sorted(names: Iterable[str]) -> list[str]:
    return sorted(names)

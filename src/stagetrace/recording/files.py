"""A recording on disk: plain files, each whole or not there, each with its digest in `recording.json`.

DIR/recording.json                     what was trained and how, which steps and states there are, every file's digest
DIR/steps/part-00000.parquet           a row a batch: step, examples, loss, generators; the step's settings on its first
DIR/inputs/part-00000.safetensors      the batches' tensors, named step.batch.place
DIR/states/step-00000000.safetensors   values, buffers, the optimiser's slots and the average before that step

Each is forced onto the disk once it is written, behind the training. A training that is killed leaves its files whole;
a machine that loses its power may lose the newest ones, which `recording.json` shows.
"""

# pyarrow has no type information, and safetensors leaves out some of its types.
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportUnknownParameterType=false

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, final

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

_HEADER = 70
"""Bytes that safetensors says of a tensor beside its name: dtype, shape, place."""

_DIGEST = "blake2b"
"""Of files: twice as fast as SHA-256 on a processor that has no instruction for that."""

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


@final
class Part:
    """Consecutive steps as their files say, opened once: blocks are read from it one after the other.

    inputs: whether the batches are among the files; of these only what is asked for is read.
    """

    def __init__(self, folder: Path, number: int, *, inputs: bool) -> None:
        self._rows: dict[int, list[Mapping[str, Any]]] = {}
        for row in pq.read_table(folder / steps_name(number)).to_pylist():
            self._rows.setdefault(row["step"], []).append(row)
        self._inputs, path = inputs, folder / inputs_name(number)
        self._file: Any = safe_open(path, framework="pt") if inputs and path.exists() else None
        self._names: dict[str, list[str]] = {}
        for name in self._file.keys() if self._file is not None else ():
            batch, _, tensor = name.rpartition(".")
            self._names.setdefault(batch, []).append(tensor)

    def steps(self, block: range) -> dict[int, Step]:
        """Those of a block that are in it, by number."""
        numbers = range(max(block.start, min(self._rows)), min(block.stop, max(self._rows) + 1))
        return {number: self._step(number) for number in numbers}

    def _step(self, number: int) -> Step:
        rows = self._rows[number]
        said = json.loads(rows[0]["settings"])
        clips = tuple(Clip(tuple(names), *rest) for names, *rest in said["clips"])
        micros = [self._micro(row, f"{number}.{place}") for place, row in enumerate(rows)]
        return Step(micros, said["groups"], clips, said["norm"], tuple(said["resting"]), said.get("average"))

    def _micro(self, row: Mapping[str, Any], batch: str) -> Micro:
        content: Written | str = row["content"]
        if self._inputs:
            names = self._names.get(batch, ())
            content = row["content"], {name: self._file.get_tensor(f"{batch}.{name}") for name in names}
        states = {device: torch.frombuffer(bytearray(state), dtype=torch.uint8) for device, state in row["generators"]}
        still, autocast = tuple(json.loads(row["modules"])), row["autocast"]
        return Micro(tuple(row["ids"]), content, row["loss"], states, still, autocast and tuple(autocast))


def write_state(folder: Path, step: int, state: State) -> str:
    """Write the state before a step, its tensors each in memory of its own. Returns the name of the file."""
    plain: dict[str, dict[str, Any]] = {}
    for name, slots in state.slots.items():
        for slot, value in slots.items():
            if not isinstance(value, Tensor):
                plain.setdefault(name, {})[slot] = value
    name = state_name(step)
    tensors = {key: tensor.detach().cpu().contiguous() for key, tensor in _named(state).items()}
    _save(folder / name, tensors, {"slots": json.dumps(plain)})
    return name


def _named(state: State) -> dict[str, Tensor]:
    """All tensors of a state, by their names in its file."""
    tensors = {f"value/{name}": value for name, value in state.values.items()}
    tensors |= {f"buffer/{name}": buffer for name, buffer in state.buffers.items()}
    tensors |= {f"average/{name}": value for name, value in state.average.items()}
    return tensors | {
        f"slot/{slot}/{name}": value
        for name, slots in state.slots.items()
        for slot, value in slots.items()
        if isinstance(value, Tensor)
    }


def size_of(state: State) -> int:
    """How many bytes its file takes: the numbers, and about so much for what they are called."""
    return sum(t.numel() * t.element_size() + len(name) + _HEADER for name, t in _named(state).items())


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


def _save(path: Path, tensors: Mapping[str, Tensor], said: Mapping[str, str]) -> None:
    with atomic(path, forced=False) as temporary:
        try:
            save_file(dict(tensors), temporary, dict(said))
        except SafetensorError as cause:
            raise OSError(str(cause)) from cause


def _read(path: Path) -> tuple[dict[str, Tensor], Mapping[str, str]]:
    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in sorted(file.keys())}, file.metadata() or {}


def digest_of(path: Path, kind: str = _DIGEST) -> str:
    """The digest of a file, with its kind before it."""
    with path.open("rb") as file:
        return f"{kind}:{hashlib.file_digest(file, kind).hexdigest()}"


def is_digest(said: object) -> bool:
    """Whether something is a digest of a kind that `is_whole` knows."""
    kind = said.partition(":")[0] if isinstance(said, str) and ":" in said else "sha256"
    return isinstance(said, str) and kind in ("sha256", _DIGEST)


def is_whole(path: Path, digest: str) -> bool:
    """Whether a file has that digest (SHA-256 where it does not say which)."""
    kind = digest.partition(":")[0] if ":" in digest else "sha256"
    return digest_of(path, kind).removeprefix("sha256:") == digest

"""Retrainings on disk: each is saved when it ends, and none is done twice."""

import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Self, final

import torch
from torch import Tensor

from stagetrace.errors import ResultsError
from stagetrace.results.files import atomic, cannot_write, read_as, write_text
from stagetrace.results.jsonable import JSON, json_text, read_json, to_json
from stagetrace.results.lock import Lock
from stagetrace.results.manifest import refuse_different, refuse_uncertain
from stagetrace.validation.removals import Removal

Key = tuple[int, float, Removal]
"""Seed, `by`, and what was removed; nothing for the control."""


@final
class Store:
    """The query losses of finished retrainings, in memory and, with a folder, in `retrainings.jsonl`.

    One line a retraining: `{"seed", "by", "removed", "control", "loss", "seconds"}`; `control` is the loss of the run
    that it is paired with. A line that was cut off by a kill is dropped and that retraining done again.

    One process at a time has the folder; as a context, the store lets it go at the end.

    Raises:
        ResultsError: another process writes to the folder, or it holds retrainings of something else; the message says
            which process, or what differs.
    """

    def __init__(self, folder: Path | None, identity: Mapping[str, JSON]) -> None:
        self._folder = folder
        self._found: dict[Key, tuple[Tensor, Tensor]] = {}
        self._seconds: dict[Key, float] = {}
        self._lock: Lock | None = None
        if folder is None:
            return
        self._lock = Lock(folder)
        try:
            self._open(folder, identity)
        except BaseException:
            self.close()
            raise

    def _open(self, folder: Path, identity: Mapping[str, JSON]) -> None:
        """Read what the folder holds; a new one gets the settings."""
        settings, found = folder / "retraining.json", folder / "retrainings.jsonl"
        if settings.exists():
            with read_as(settings, "what retrainings are of", "choose another folder (--out), or delete this one"):
                before = read_json(settings)
            refuse_uncertain(folder, before, identity)
            refuse_different(folder, "set of retrainings", before, to_json(identity))
            self._read(found)
        elif found.exists():
            raise ResultsError(f"{folder} holds retrainings, but no {settings.name} that says of what; delete {found}")
        else:
            write_text(settings, json_text(identity))

    def close(self) -> None:
        """Let the folder go; what was kept stays."""
        if self._lock is not None:
            self._lock.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __contains__(self, key: Key) -> bool:
        return key in self._found

    def __len__(self) -> int:
        return len(self._found)

    def effect(self, key: Key) -> Tensor:
        """The change of the query loss against the paired control: a number, or `[queries]`."""
        loss, control = self._found[key]
        return loss - control

    def control(self, keys: Collection[Key]) -> Tensor:
        """The mean query loss of the controls that these retrainings are paired with."""
        return torch.stack([self._found[key][1] for key in sorted(keys)]).mean(dim=0)

    def seconds_of(self, keys: Collection[Key]) -> float:
        """Seconds of one process that these retrainings took, their share of the controls included."""
        return sum(self._seconds[key] for key in sorted(keys))

    def add(self, keys: Sequence[Key], losses: Tensor, control: Tensor, seconds: float) -> None:
        """Save finished retrainings, flushed to disk before this returns.

        Raises:
            ResultsError: the folder has been deleted or taken over, or the file system refused.
        """
        lines: list[str] = []
        for key, loss in zip(keys, losses, strict=True):
            self._found[key], self._seconds[key] = (loss, control), seconds / len(keys)
            seed, by, removed = key
            line = {
                "seed": seed,
                "by": by,
                "removed": list(removed),
                "control": control.tolist(),
                "loss": loss.tolist(),
                "seconds": seconds / len(keys),
            }
            lines.append(json.dumps(line) + "\n")
        if self._folder is not None and self._lock is not None:
            self._lock.check()
            path = self._folder / "retrainings.jsonl"
            try:
                with path.open("a", encoding="utf-8") as file:
                    file.write("".join(lines))
            except OSError as cause:
                raise cannot_write(path, cause) from cause

    def _read(self, path: Path) -> None:
        if not path.exists():
            return
        whole = path.read_bytes()
        if not whole.endswith(b"\n"):  # cut off by a kill
            whole = whole[: whole.rfind(b"\n") + 1]
            with atomic(path) as temporary:
                temporary.write_bytes(whole)
        for number, text in enumerate(whole.decode("utf-8", errors="replace").splitlines(), start=1):
            with read_as(f"{path}, line {number},", "a retraining", "delete that line, and it is trained again"):
                line = json.loads(text)
                key = (int(line["seed"]), float(line["by"]), tuple(line["removed"]))
                self._found[key] = tuple(torch.tensor(line[k], dtype=torch.float64) for k in ("loss", "control"))  # pyright: ignore[reportArgumentType]
                self._seconds[key] = float(line["seconds"])

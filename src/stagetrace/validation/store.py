"""Retrainings on disk: each is saved when it ends, and none is done twice."""

import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import final

import torch
from torch import Tensor

from stagetrace.errors import ResultsError
from stagetrace.results.descriptions import differences, format_differences, refuse_uncertain
from stagetrace.results.files import atomic, cannot_write
from stagetrace.results.jsonable import JSON
from stagetrace.validation.removals import Removal

Key = tuple[int, float, Removal]
"""Seed, `by`, and what was removed; nothing for the control."""


@final
class Store:
    """The query losses of finished retrainings, in memory and, with a folder, in `retrainings.jsonl`.

    One line a retraining: `{"seed", "by", "removed", "control", "loss", "seconds"}`; `control` is the loss of the run
    that it is paired with. A line that was cut off by a kill is dropped and that retraining done again.

    Raises:
        ResultsError: the folder holds retrainings of something else; the message says what differs.
    """

    def __init__(self, folder: Path | None, identity: Mapping[str, JSON]) -> None:
        self._folder = folder
        self._found: dict[Key, tuple[Tensor, Tensor]] = {}
        self._seconds: dict[Key, float] = {}
        if folder is None:
            return
        settings, found = folder / "retraining.json", folder / "retrainings.jsonl"
        if settings.exists():
            self._check(settings, identity)
            self._read(found)
        elif found.exists():
            raise ResultsError(f"{folder} holds retrainings, but no {settings.name} that says of what; delete {found}")
        else:
            with atomic(settings) as temporary:
                temporary.write_text(json.dumps(identity, indent=2) + "\n", encoding="utf-8")

    def __contains__(self, key: Key) -> bool:
        return key in self._found

    def __len__(self) -> int:
        return len(self._found)

    def effect(self, key: Key) -> Tensor:
        """The change of the query loss against the paired control: a number, or `[queries]`."""
        loss, control = self._found[key]
        return loss - control

    def seconds_of(self, keys: Collection[Key]) -> float:
        """Seconds of one process that these retrainings took, their share of the controls included."""
        return sum(self._seconds[key] for key in sorted(keys))

    def add(self, keys: Sequence[Key], losses: Tensor, control: Tensor, seconds: float) -> None:
        """Save finished retrainings, flushed to disk before this returns."""
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
        if self._folder is not None:
            path = self._folder / "retrainings.jsonl"
            try:
                with path.open("a", encoding="utf-8") as file:
                    file.write("".join(lines))
            except OSError as cause:
                raise cannot_write(path, cause) from cause

    def _check(self, settings: Path, identity: Mapping[str, JSON]) -> None:
        try:
            before = json.loads(settings.read_text(encoding="utf-8"))
        except (OSError, ValueError) as cause:
            raise ResultsError(f"{settings} cannot be read ({cause}); give another --out, or delete it") from cause
        refuse_uncertain(settings.parent, before, identity)
        changed = differences(before, json.loads(json.dumps(identity)))
        if changed:
            raise ResultsError(
                f"{settings.parent} holds retrainings of something else; give another folder, or delete this one:\n"
                f"{format_differences(changed)}"
            )

    def _read(self, path: Path) -> None:
        if not path.exists():
            return
        whole = path.read_bytes()
        if not whole.endswith(b"\n"):  # cut off by a kill
            whole = whole[: whole.rfind(b"\n") + 1]
            with atomic(path) as temporary:
                temporary.write_bytes(whole)
        for number, text in enumerate(whole.decode("utf-8", errors="replace").splitlines(), start=1):
            try:
                line = json.loads(text)
                key = (int(line["seed"]), float(line["by"]), tuple(line["removed"]))
                self._found[key] = tuple(torch.tensor(line[k], dtype=torch.float64) for k in ("loss", "control"))  # pyright: ignore[reportArgumentType]
                self._seconds[key] = float(line["seconds"])
            except (ValueError, LookupError, TypeError, RuntimeError) as cause:  # RuntimeError: no tensor of it
                raise ResultsError(
                    f"{path}, line {number} cannot be read ({cause}); delete that line, and it is trained again"
                ) from cause

"""A run's record with something else in it, as if stagetrace had written it so."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from stagetrace.results.seals import digest_of


def rewrite(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change run.json, and its digest with it."""
    record = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    change(record)
    record["sha256"] = digest_of({key: value for key, value in record.items() if key != "sha256"})
    (folder / "run.json").write_text(json.dumps(record), encoding="utf-8")

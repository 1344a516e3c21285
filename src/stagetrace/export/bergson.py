"""bergson's score store: a folder with `scores.bin`, `info.json` and `config.yaml`.

`scores.bin` is a NumPy memory map of one record an example: for each query a float32 score and whether it was written,
each pair padded to 8 bytes. `config.yaml` says by `higher_is_better` that positive = proponent.

Source: bergson 2.5.1, `score/score_writer.py` (`MemmapSequenceScoreWriter`), `data.py` (`load_scores`,
`load_scores_loss_signed`).
"""

import json
from pathlib import Path
from typing import Any

import numpy as np

from stagetrace.export.orient import PROPONENT, proponents
from stagetrace.results import Scores
from stagetrace.results.files import atomic

PAIR = 8
"""Bytes of a float32 and its flag."""


def write_bergson(scores: Scores, out: Path) -> list[Path]:
    """Write the folder `out` that `bergson.data.load_scores(out)` reads, `info.json` last.

    Raises:
        ResultsError: the file system refused.
    """
    matrix = proponents(scores).numpy()
    n_queries, n_examples = matrix.shape
    layout: Any = _layout(n_queries)
    rows = np.zeros(n_examples, dtype=np.dtype(layout))
    for query, values in enumerate(matrix):
        rows[f"score_{query}"], rows[f"written_{query}"] = values, True
    info = {
        "attribute_tokens": False,
        "num_items": n_examples,
        "num_rows": n_examples,
        "num_scores": n_queries,
        "dtype": layout,
        "stagetrace": f"stage {scores.stage!r}: {PROPONENT}",
    }
    config = {"steps": [{"score": {"score_cfg": {"higher_is_better": True}}}]}  # YAML holds JSON
    paths = [out / name for name in ("scores.bin", "config.yaml", "info.json")]
    for path, content in zip(paths, (rows.tobytes(), _json(config), _json(info)), strict=True):
        with atomic(path) as temporary:
            temporary.write_bytes(content)
    return paths


def _layout(n_queries: int) -> dict[str, object]:
    """NumPy's description of a record."""
    places = range(n_queries)
    return {
        "names": [name for place in places for name in (f"score_{place}", f"written_{place}")],
        "formats": [kind for _ in places for kind in ("float32", "bool")],
        "offsets": [offset for place in places for offset in (PAIR * place, PAIR * place + 4)],
        "itemsize": PAIR * n_queries,
    }


def _json(value: object) -> bytes:
    return (json.dumps(value, indent=2) + "\n").encode()

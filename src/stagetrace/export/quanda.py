"""quanda's explanations: a tensor `[n_test, n_train]`, positive = proponent, for `metric.update(explanations, ...)`.

The folder holds one batch, `0.pt`, so that `quanda.utils.cache.ExplanationsCache.load(folder)[0]` gives the tensor, and
`torch.load(folder / "0.pt", weights_only=True)` does so without quanda.

Source: quanda 0.5.0, `utils/cache.py`, `metrics/`.
"""

from pathlib import Path

import torch

from stagetrace.export.orient import PROPONENT, proponents
from stagetrace.results import Scores
from stagetrace.results.files import atomic, write_text
from stagetrace.results.jsonable import json_text


def write_quanda(scores: Scores, out: Path) -> list[Path]:
    """Write the folder `out` of one batch of explanations, and `stagetrace.json` that says their sign.

    Raises:
        ResultsError: the file system refused.
    """
    paths = [out / "0.pt", out / "stagetrace.json"]
    with atomic(paths[0]) as temporary:
        torch.save(proponents(scores), temporary)
    write_text(paths[1], json_text({"stage": scores.stage, "sign": PROPONENT}))
    return paths

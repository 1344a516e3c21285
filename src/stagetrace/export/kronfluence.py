"""kronfluence's pairwise scores: one safetensors file, `pairwise_scores.safetensors`, in a folder of its own.

Its key `all_modules` holds `[n_queries, n_examples]`, positive = proponent where the measurement is a loss.

Source: kronfluence 1.0.1, `score/pairwise.py` (`save_pairwise_scores`, `load_pairwise_scores`).
"""

# safetensors leaves out some of its types.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false

from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from stagetrace.errors import ResultsError
from stagetrace.export.orient import PROPONENT, from_proponents, proponents
from stagetrace.results import Scores
from stagetrace.results.files import atomic, read_as

NAME = "pairwise_scores.safetensors"
KEY = "all_modules"


def write_kronfluence(scores: Scores, out: Path) -> list[Path]:
    """Write the folder `out` with the file that `kronfluence.score.pairwise.load_pairwise_scores(out)` reads.

    Raises:
        ResultsError: the file system refused.
    """
    path = out / NAME
    with atomic(path) as temporary:
        try:
            save_file({KEY: proponents(scores)}, temporary, {"stagetrace": f"stage {scores.stage!r}: {PROPONENT}"})
        except SafetensorError as cause:
            raise OSError(str(cause)) from cause
    return [path]


def read_kronfluence(path: str | Path, stage: str) -> Scores:
    """Read kronfluence's pairwise scores, the sign turned to ours: positive = harmful.

    Only where its measurement is a loss; of another one, such as a margin, the sign is the other way round. Scores kept
    for each module are summed, as their parts of one score.

    Args:
        path: the folder of the scores, or the file in it.
        stage: the stage that its training examples are those of.

    Returns:
        Scores `[n_queries, n_examples]`.

    Raises:
        ResultsError: there is no such file, or it holds no pairwise scores.
    """
    file = Path(path) / NAME if Path(path).is_dir() else Path(path)
    with read_as(file, "kronfluence's scores", f"give the folder with {NAME} in it"):
        found = load_file(file)
    shapes = {tuple(tensor.shape) for tensor in found.values()}
    if len(shapes) != 1 or len(next(iter(shapes))) != 2:
        raise ResultsError(
            f"{file} holds no pairwise scores [queries, examples], but {sorted(shapes)}; self-influence scores and "
            "scores for each token are not read"
        )
    matrices = [tensor.double() for tensor in found.values()]
    return from_proponents(stage, sum(matrices[1:], start=matrices[0]))

"""The zoo and the refusals as rows of the page about models."""

from functools import partial

from tests.architectures import dense
from tests.architectures.test_refusals import REFUSED
from tests.architectures.zoo import EXACT, LANGUAGE, LAYERS, Case
from tests.models import Refused, Right, Row

SOLVED = 10 * EXACT
"""Allowed error where all is float64: a solve amplifies what a derivative misses, by the condition number at most."""

WORDS = {
    "data parallel": ("`DataParallel`", "`model=wrapped.module`"),
    "distributed": ("`DistributedDataParallel`", "`model=wrapped.module`; several processes by `torchrun`"),
    "sharded": ("`FullyShardedDataParallel`", "`fully_shard` on the plain module, or the full state dict in it"),
    "scripted": ("scripted or traced modules", "the module they were made from"),
    "complex": ("complex parameters", "real ones, with their real and imaginary parts"),
    "rows over the norm": (
        "`max_norm=` with longer rows in the table",
        "clip the table once, by the line in the error",
    ),
    "the bag as a function": ("`F.embedding_bag`", "`nn.EmbeddingBag`, or `curvature=Identity()`"),
    "fused weight norm": ("`torch.nn.utils.weight_norm`, the old one", "`parametrizations.weight_norm`"),
    "a list": ("a model that returns a list", "an objective whose `outputs` gives the tensor"),
}


def measured(table: str, case: Case) -> Right:
    how = case.way or "forward mode, on recent versions of PyTorch"
    how += "" if case.second else "; `curvature=Identity()` only"
    return Right(table, case.name, partial(dense.error, case), max(case.tolerance, SOLVED), how)


ROWS: list[Row] = [
    *(measured("layers", case) for case in LAYERS),
    *(measured("transformers", case) for case in LANGUAGE),
    *(Refused("refused", WORDS[name][0], *of, instead=WORDS[name][1]) for name, of in REFUSED.items()),
]

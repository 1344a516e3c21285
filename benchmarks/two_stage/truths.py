"""A truth: what every query's loss is after training again without each subset; one Parquet file a chain and seed.

A row a subset: `subset` (its name), `percent`, `members` (the examples left out), `recorded` (the loss of every query,
nats) and `orders` (the same for each other order; null where the subset was not left out in other orders). The schema's
metadata holds, as JSON, the names of the queries, the losses with every example, and what was held fixed.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, final

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from benchmarks.two_stage.protocol import OTHER, RECORDED
from stagetrace.errors import refuse
from stagetrace.results.files import atomic, read_as
from stagetrace.results.jsonable import to_json
from stagetrace.validation.removals import Removal

FOLDER = Path(__file__).parent / "truths"
KEY = b"stagetrace.two-stage truth"
SCHEMA = pa.schema(
    [
        ("subset", pa.string()),
        ("percent", pa.int32()),
        ("members", pa.list_(pa.int32())),
        ("recorded", pa.list_(pa.float64())),
        ("orders", pa.list_(pa.list_(pa.float64()))),
    ]
)


@final
@dataclass(frozen=True, eq=False)
class Truth:
    """Of one chain and seed.

    examples: of the pretraining stage. queries: names. subsets: what is left out, by name.
    losses: of every query after training again, float64 `[queries, subsets]`; control: with every example, `[queries]`.
    repeated: places of the subsets that were left out in other orders, too.
    order_losses: `[orders, queries, repeated]`; order_controls: `[orders, queries]`.
    facts: what was held fixed, and how it was made.
    """

    chain: str
    seed: int
    examples: int
    queries: tuple[str, ...]
    subsets: Mapping[str, Removal]
    losses: Tensor
    control: Tensor
    repeated: tuple[int, ...]
    order_losses: Tensor
    order_controls: Tensor
    facts: Mapping[str, Any]

    @property
    def key(self) -> tuple[str, int]:
        return self.chain, self.seed

    @cached_property
    def percents(self) -> Tensor:
        """The size of each subset, of the stage's examples: int64 `[subsets]`."""
        return torch.tensor([int(name.split("%")[0]) for name in self.subsets])

    @cached_property
    def changes(self) -> Tensor:
        """The change of every query's loss when the subset is left out: `[queries, subsets]`; negative = it helps."""
        return self.losses - self.control[:, None]

    @cached_property
    def order_changes(self) -> Tensor:
        """The same in each other order, against the control of that order: `[orders, queries, repeated]`."""
        return self.order_losses - self.order_controls[..., None]

    def of(self, kind: str, percent: int) -> tuple[list[int], Tensor]:
        """Places of the subsets of a size that a truth has, and their changes `[queries, those]`.

        Of other orders it is the mean over the orders.
        """
        sized = (self.percents == percent).tolist()
        if kind == RECORDED:
            places = [place for place, right in enumerate(sized) if right]
            return places, self.changes[:, places]
        assert kind == OTHER
        among = [n for n, place in enumerate(self.repeated) if sized[place]]
        return [self.repeated[n] for n in among], self.order_changes.mean(dim=0)[:, among]

    def write(self, folder: Path = FOLDER) -> Path:
        """Write the file, whole or not at all."""
        orders: list[Any] = [None] * len(self.subsets)
        for n, place in enumerate(self.repeated):
            orders[place] = self.order_losses[:, :, n].tolist()
        table = pa.table(
            {
                "subset": list(self.subsets),
                "percent": self.percents.tolist(),
                "members": [list(members) for members in self.subsets.values()],
                "recorded": self.losses.mT.tolist(),
                "orders": orders,
            },
            schema=SCHEMA,
        )
        said = {
            "chain": self.chain,
            "seed": self.seed,
            "examples": self.examples,
            "queries": list(self.queries),
            "control": self.control.tolist(),
            "order_controls": self.order_controls.tolist(),
            "facts": to_json(self.facts),
        }
        path = folder / f"{self.chain}-{self.seed}.parquet"
        with atomic(path) as temporary:
            pq.write_table(table.replace_schema_metadata({KEY: json.dumps(said)}), temporary, compression="zstd")
        return path

    @staticmethod
    def read(path: Path) -> "Truth":
        """Read such a file.

        Raises:
            ResultsError: it is none.
        """
        with read_as(path, "a truth of the two-stage benchmark", "make it again: python -m benchmarks two-stage make"):
            table = pq.read_table(path)
            said = json.loads((table.schema.metadata or {})[KEY])
        rows: list[dict[str, Any]] = table.to_pylist()
        queries = len(said["queries"])
        repeated = tuple(place for place, row in enumerate(rows) if row["orders"] is not None)
        runs = len(said["order_controls"])
        orders = [torch.tensor(rows[place]["orders"], dtype=torch.float64) for place in repeated]
        return Truth(
            said["chain"],
            said["seed"],
            said["examples"],
            tuple(said["queries"]),
            {row["subset"]: tuple(row["members"]) for row in rows},
            torch.tensor([row["recorded"] for row in rows], dtype=torch.float64).mT,
            torch.tensor(said["control"], dtype=torch.float64),
            repeated,
            torch.stack(orders, dim=-1) if orders else torch.zeros(runs, queries, 0, dtype=torch.float64),
            torch.tensor(said["order_controls"], dtype=torch.float64).reshape(runs, queries),
            said["facts"],
        )


def read_truths(folder: Path = FOLDER) -> dict[tuple[str, int], Truth]:
    """Every truth of a folder, by chain and seed.

    Raises:
        DescriptionError: there is none.
    """
    found = [Truth.read(path) for path in sorted(folder.glob("*.parquet"))]
    if not found:
        refuse(f"{folder} holds no truths; type: python -m benchmarks two-stage make --data DIR")
    return {truth.key: truth for truth in found}


def digest_of(truths: Mapping[tuple[str, int], Truth]) -> str:
    """Names what was to be predicted (chains, queries, subsets), and nothing that came out."""
    asked = [
        [*key, truth.examples, truth.queries, list(truth.subsets.items())] for key, truth in sorted(truths.items())
    ]
    return hashlib.sha256(json.dumps(asked).encode()).hexdigest()[:16]


def summed(effects: Tensor, subsets: Sequence[Removal]) -> Tensor:
    """What scores of single examples predict of subsets: the sums of their removal effects.

    effects: `[queries, n]`, the predicted change of each query's loss when that example alone is left out.
    Returns `[queries, subsets]`.
    """
    return torch.stack([effects[:, list(members)].sum(dim=1) for members in subsets], dim=1)

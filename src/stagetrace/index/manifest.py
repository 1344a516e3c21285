"""index.json: what an index is, how it was made, what its recall is, and the digest of every file of it.

The format has a number of its own, apart from that of run folders. A release reads every format in `READ`; a change of
what a file holds needs a new number, and what was written under the old ones stays readable.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, final

from stagetrace.errors import ResultsError
from stagetrace.index.codes import Kind
from stagetrace.index.recall import Recall
from stagetrace.index.store import StoreKind
from stagetrace.results.files import read_as
from stagetrace.results.jsonable import JSON, from_json, to_json
from stagetrace.results.manifest import versions
from stagetrace.results.seals import digest_of, read_record, write_record
from stagetrace.results.sign import SIGN

__all__ = ["FORMAT", "READ", "RECORD", "IndexManifest", "StageIndex", "read_index_manifest"]

RECORD = "index.json"

FORMAT = 2
"""What is written."""

READ = (1, 2)
"""The formats that this release reads; in 1 every stage is kept by components."""

REMEDY = "give the folder of an index, or delete this one and build it again"


@final
@dataclass(frozen=True)
class StageIndex:
    """What is kept of a stage's examples.

    n_examples, parameters: of the stage. store: in what its examples are kept. numbers: coordinates that are kept of
    each example, as `codes`; words: of which a row is kept besides, at most; bytes_each: what an example takes, at
    most, and bytes_mean on average, where they differ. drawn: gradients that the store was fitted on. model, ends:
    fingerprints, by the description's `fingerprints` scheme.
    recall: how many of the true ends of rankings a search finds; None where it was not measured.
    notes: what differs from what was asked for, and why.
    """

    n_examples: int
    parameters: int
    numbers: int
    codes: Kind
    bytes_each: int
    drawn: int
    model: str
    ends: str
    recall: Recall | None = None
    notes: tuple[str, ...] = ()
    store: StoreKind = "components"
    words: int = 0
    bytes_mean: float | None = None


@final
@dataclass(frozen=True)
class IndexManifest:
    """The content of index.json; stages stand in chain order.

    index: the digest of the description, which every file of the index carries.
    description: fingerprints and settings: what makes this index this index.
    target: the TARGET of the command line, as it was typed; None where the index was built in Python.
    """

    index: str
    description: Mapping[str, JSON]
    target: str | None = None
    status: Literal["running", "complete"] = "running"
    sign: str = SIGN
    stages: Mapping[str, StageIndex] = field(default_factory=dict[str, StageIndex])
    statistics: Mapping[str, JSON] = field(default_factory=dict[str, JSON])
    versions: Mapping[str, str] = field(default_factory=versions)
    files: Mapping[str, str] = field(default_factory=dict[str, str])

    @staticmethod
    def of(description: Mapping[str, JSON], target: str | None) -> "IndexManifest":
        """The record of an index that is begun."""
        return IndexManifest(digest_of(description), description, target)

    @property
    def is_complete(self) -> bool:
        return self.status == "complete"

    def write(self, folder: Path) -> None:
        """Write index.json, atomically.

        Raises:
            ResultsError: the file system refused.
        """
        write_record(folder / RECORD, to_json(self, RECORD), FORMAT)


def read_index_manifest(folder: Path) -> IndexManifest:
    """Read index.json.

    Raises:
        ResultsError: there is none, it cannot be read, is damaged, or is of another format.
    """
    path = folder / RECORD
    if not path.exists():
        raise ResultsError(
            f"{folder} is no index: it has no {RECORD}; build one: stagetrace index TARGET --out {folder}"
        )
    content = read_record(path, "the record of an index", READ, "search it with the version that wrote it", REMEDY)
    with read_as(path, "the record of an index", REMEDY):
        return from_json(IndexManifest, content)

"""Whether an index is of this chain: what was recorded of its stages, and what is kept of a few examples."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from stagetrace.errors import ResultsError
from stagetrace.index.files import PART
from stagetrace.index.lookup import held_of
from stagetrace.index.manifest import IndexManifest
from stagetrace.index.store import Store
from stagetrace.stages.bound import BoundStage
from stagetrace.stages.fingerprint import SCHEME, digest_of_weights, fingerprint_examples, fingerprint_model

__all__ = ["check_kept", "check_recorded"]

PROBED = 8
"""Examples of which what is kept is computed again: of those that the store was fitted on."""

REMEDY = "give the model and data that it was built with, or build another index (stagetrace index TARGET --out DIR)"


def check_recorded(folder: Path, manifest: IndexManifest, bound: BoundStage) -> None:
    """Refuse an index of another number of examples or parameters, of another model, other data or other weights.

    Fingerprints are compared only if they were taken as this release takes them.

    Raises:
        ResultsError: says what differs.
    """
    held, where = manifest.stages[bound.name], f"{folder} is not an index of this {bound.stage.where}"
    examples = len(bound.risk.examples)
    for what, there, here in (
        ("examples", held.n_examples, examples),
        ("parameters", held.parameters, bound.trained.size),
    ):
        if there != here:
            raise ResultsError(f"{where}: it has {here:,} {what}, and the index was made of {there:,}; {REMEDY}")
    if manifest.description.get("fingerprints") != SCHEME:
        return
    if held.model != fingerprint_model(bound.stage.model)["sha256"]:
        raise ResultsError(f"{where}: the model's values differ from those that it was built with; {REMEDY}")
    if held.ends != fingerprint_examples(bound.risk.examples, read=False)["ends"]:
        raise ResultsError(f"{where}: the first or last examples differ from those that it was built with; {REMEDY}")
    built = cast("Mapping[str, Any]", manifest.description.get("stages", {})).get(bound.name, {})
    if built.get("weights") != digest_of_weights(bound.stage.example_weights):  # of any example, not of those probed
        remedy = "give weights= as it was built with, or build another index (stagetrace index TARGET --out DIR)"
        raise ResultsError(f"{where}: the weights of its examples differ from those that it was built with; {remedy}")


def check_kept(folder: Path, bound: BoundStage, store: Store) -> None:
    """Compute what is kept of a few examples again, and refuse an index that keeps something else.

    Raises:
        ResultsError: names the example.
    """
    drawn = store.drawn
    encode = store.encoder("float32", bound.trained.zeros(0))
    for index in sorted({drawn[place * len(drawn) // PROBED] for place in range(PROBED)}):
        number, place = divmod(index, PART)
        fresh, _ = encode([index])
        if not store.agrees(held_of(folder, bound.name, number), place, fresh):
            raise ResultsError(
                f"{folder} is not an index of this {bound.stage.where}: the gradient of example {index} differs "
                f"from what is kept of it, so the model, its loss or the data have changed; {REMEDY}"
            )

"""Whether two descriptions say enough to tell whether two runs are the same."""

from collections.abc import Mapping
from pathlib import Path

from stagetrace.errors import ResultsError
from stagetrace.results.json_value import JSON, leaves_named
from stagetrace.stages.fingerprint import NOT_TAKEN


def refuse_uncertain(folder: Path, stored: Mapping[str, JSON], wanted: Mapping[str, JSON]) -> None:
    """Refuse to go on with a run that may be another one.

    Raises:
        ResultsError: something of this run cannot be identified, or the folder's run was not fingerprinted like it.
    """
    unidentified = leaves_named(wanted, "unidentified")
    if unidentified:
        path, names = unidentified[0]
        first, *more = names if isinstance(names, list) else [str(names)]
        more = len(more) + len(unidentified) - 1
        beside = f" (nor can {more} more)" if more else ""
        raise ResultsError(
            f"{folder} already holds a run, and this one cannot be compared with it: {path} refers to {first}, which "
            f"cannot be identified{beside}; choose another folder (--out), or give its class a __getstate__ that "
            "returns what a score depends on"
        )
    if stored.get("fingerprints") != wanted.get("fingerprints"):
        raise ResultsError(
            f"{folder} holds a run of an older stagetrace, whose record does not say enough to be compared with this "
            "one; it can be read (Trace.load, stagetrace report), but to compute choose another folder (--out)"
        )
    untold = [path for path, value in leaves_named(stored, "sha256") if value == NOT_TAKEN]
    if untold and not any(value == NOT_TAKEN for _, value in leaves_named(wanted, "sha256")):
        raise ResultsError(
            f"{folder} holds a run that was written by Trace.save without out=, so its data were not fingerprinted "
            f"({untold[0]}) and may be others than these; choose another folder (--out), or delete this one"
        )

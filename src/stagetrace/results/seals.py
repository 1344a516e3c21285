"""Seals: the digest that a file carries of what it holds, so that a damaged or edited one is never used.

A sealed record is a JSON file with its format number, the sign of its scores and its own digest.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from stagetrace.results.files import read_as, write_text
from stagetrace.results.jsonable import JSON, json_text, read_json
from stagetrace.results.sign import SIGN

__all__ = ["SEAL", "check_seal", "digest_of", "read_record", "seal_of", "write_record"]

SEAL = "sha256"
"""The key under which a file says the digest of what it holds."""


def write_record(path: Path, content: Mapping[str, JSON], number: int) -> None:
    """Write a sealed record, atomically. number: of its format.

    Raises:
        ResultsError: the file system refused.
    """
    whole: dict[str, JSON] = {"format": number, **content}
    write_text(path, json_text({**whole, SEAL: seal_of(whole).hexdigest()}))


def read_record(path: Path, what: str, numbers: Sequence[int], otherwise: str, remedy: str) -> dict[str, Any]:
    """The content of a sealed record, without its format number and its seal.

    what: as messages call it. numbers: formats that are read. otherwise: what to do about one of another format.
    remedy: what to do about one that cannot be read.

    Raises:
        ResultsError: it cannot be read, is damaged, of another format or of another sign.
    """
    with read_as(path, what, remedy):
        content = read_json(path)
        if not isinstance(content, dict) or "format" not in content:
            raise ValueError("it has no format number")
        if content["format"] not in numbers:
            known = " and ".join(map(str, numbers))
            raise ValueError(f"it has format {content['format']!r}, this stagetrace reads format {known}: {otherwise}")
        if content.get("sign") != SIGN:
            raise ValueError(f"its sign is {content.get('sign')!r}, not {SIGN!r}")
        if content.get(SEAL) != seal_of(content).hexdigest():
            raise ValueError("it is damaged or was edited: its content is not what was written")
        return {key: value for key, value in content.items() if key not in ("format", SEAL)}


def digest_of(content: object) -> str:
    """The digest of a JSON value, whatever the order of its keys.

    Example:
        >>> digest_of({"a": 1, "b": 2}) == digest_of({"b": 2, "a": 1})
        True
    """
    return _hash_of(content).hexdigest()


def seal_of(metadata: Mapping[str, object]) -> Any:
    """The digest, by `hashlib`, of what a file says of itself but for its seal; what it holds is to be added."""
    return _hash_of({key: value for key, value in metadata.items() if key != SEAL})


def check_seal(found: Mapping[str, object], seal: Any) -> None:
    """Refuse a file whose seal is another than that of what it holds.

    Raises:
        ValueError: it is damaged.
    """
    if found.get(SEAL) != seal.hexdigest():
        raise ValueError("it is damaged: what it holds is not what was written")


def _hash_of(content: object) -> Any:
    return hashlib.sha256(json.dumps(content, sort_keys=True, allow_nan=False).encode())

"""Digests of a run's objects, and what could not be identified."""

from collections.abc import Mapping
from typing import Any, final

from stagetrace.stages.identity.origin import PYTHON, versions_of
from stagetrace.stages.identity.rules import rule_of
from stagetrace.stages.identity.walk import Walk

Json = dict[str, Any]


@final
class Identity:
    """Identifies the objects of one run, and keeps which packages their code comes from.

    Example:
        >>> identity = Identity()
        >>> identity.of({"scale": 2.0}) == Identity().of({"scale": 2.0})
        True
        >>> identity.of(iter([1]))["unidentified"]
        ['(a list_iterator)']
    """

    def __init__(self) -> None:
        self._libraries = {PYTHON, "stagetrace", "torch"}

    def of(self, value: Any, known: Mapping[int, str] | None = None) -> Json:
        """`sha256` of an object, and under `unidentified` the names of what in it cannot be identified, if anything.

        known: words for objects that are identified elsewhere, by their `id`.
        """
        walk = self.walk(known)
        return self.told(walk, walk.digest(value, "").hex())

    def walk(self, known: Mapping[int, str] | None = None) -> Walk:
        """A walk whose finds count for this run once `told` of."""
        return Walk(rule_of, known)

    def told(self, walk: Walk, sha256: str) -> Json:
        """A digest as plain values, with what its walk found."""
        self._libraries |= walk.libraries
        return {"sha256": sha256, **({"unidentified": sorted(walk.unidentified)} if walk.unidentified else {})}

    def versions(self) -> dict[str, str]:
        """The versions of the packages whose code was met."""
        return versions_of(self._libraries)

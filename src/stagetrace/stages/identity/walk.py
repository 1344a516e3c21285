"""One walk over a value and all that it refers to: a digest that is the same in every process.

Nothing of it depends on addresses, on the order of sets or on which equal objects are one. What an object is made of is
for the rules (`rules.py`); the walk keeps the order, the cycles and the bounds.
"""

import hashlib
from collections.abc import Callable, Mapping
from types import FunctionType
from typing import Any, final

DEEPEST = 100
"""Levels of nesting that are followed."""

MOST = 1_000_000
"""Objects that one walk looks into."""

Rule = Callable[["Walk", Any], None]
"""Says what a value is made of, by `word` and `visit`."""


def _number(value: Any) -> bytes:
    return hex(value).encode()


def _text(value: Any) -> bytes:
    return value.encode("utf-8", "surrogatepass")


def _written(value: Any) -> bytes:
    return repr(value).encode()


PLAIN: dict[type, Callable[[Any], bytes]] = {
    type(None): _written,
    type(...): _written,
    type(NotImplemented): _written,
    bool: _written,
    int: _number,
    float: _written,
    complex: _written,
    str: _text,
    bytes: bytes,
}
"""Values that are what they say."""


@final
class Walk:
    """Digests values by rules.

    rule_of: the rule for a class.
    known: words for objects that are identified elsewhere, by their `id`: a stage's own parameters.
    """

    def __init__(self, rule_of: Callable[[type], Rule], known: Mapping[int, str] | None = None) -> None:
        self.known = dict(known or {})
        self.unidentified: list[str] = []
        self.libraries: set[str] = set()
        self._rule_of = rule_of
        self._sha = hashlib.sha256()
        self._path: list[str] = []
        self._open: dict[int, int] = {}
        self._digests: dict[int, tuple[bytes, Any]] = {}
        self._code: dict[int, tuple[bytes, Any]] = {}

    def digest(self, value: Any, name: str) -> bytes:
        """The digest of a value; `name` is how it is called in `unidentified`."""
        outer, self._sha = self._sha, hashlib.sha256()
        try:
            self.visit(name, value)
            return self._sha.digest()
        finally:
            self._sha = outer

    def finished(self) -> str:
        """The digest, in hexadecimal, of all that was visited at the top."""
        return self._sha.hexdigest()

    def forget(self) -> None:
        """Let go of every object seen, but for functions and classes."""
        self._digests.clear()

    def word(self, kind: str, content: bytes | str | memoryview = b"") -> None:
        """Add a word to the digest of what is being visited."""
        data = content.encode("utf-8", "surrogatepass") if isinstance(content, str) else content
        size = data.nbytes if isinstance(data, memoryview) else len(data)
        self._sha.update(f"{kind} {size}:".encode())
        self._sha.update(data)

    def visit(self, label: str, value: Any) -> None:
        """Add a value that the visited one is made of; `label` continues its name."""
        written = PLAIN.get(type(value))
        if written is not None:
            self.word(type(value).__name__, written(value))
            return
        key = id(value)
        if key in self.known:
            self.word("known", self.known[key])
        elif key in self._open:
            self.word("cycle", str(len(self._path) - self._open[key]))
        else:
            done = self._digests.get(key) or self._code.get(key)
            self.word("object", done[0] if done else self._looked_into(label, value))

    def cannot(self, what: str) -> None:
        """Note that what is being visited cannot be identified."""
        name = f"{''.join(self._path).lstrip('.')} ({what})".strip()
        if name not in self.unidentified:
            self.unidentified.append(name)
        self.word("unidentified", what)

    def _looked_into(self, label: str, value: Any) -> bytes:
        key, outer = id(value), self._sha
        self._open[key], self._sha = len(self._path), hashlib.sha256()
        self._path.append(label)
        try:
            if len(self._path) > DEEPEST:
                self.cannot("nested too deeply")
            elif len(self._digests) > MOST:
                self.cannot("more objects than can be looked into")
            else:
                self._rule_of(type(value))(self, value)
            made = self._sha.digest()
        finally:
            self._path.pop()
            del self._open[key]
            self._sha = outer
        kept = self._code if isinstance(value, (type, FunctionType)) else self._digests
        kept[key] = made, value  # holds on to the object, or its id would be another's
        return made

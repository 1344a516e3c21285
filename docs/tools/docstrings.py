"""A Sphinx extension: the library's docstrings, written as plain text with Markdown's marks, become reStructuredText.

Four things differ. A span of code has one backtick on each side. `|x|` is a size, not a substitution. An indented
block is a formula, kept as it is. And lines of the form `name: what it is` are a list.
"""

import inspect
import re
from collections.abc import Iterable, Iterator
from typing import Any

CODE = re.compile(r"(?<!`)`([^`]+)`(?!`)")
SECTION = re.compile(r"(Args|Attributes|Examples?|Note|Raises|Returns|Yields):$")
HANGING = re.compile(r"\S.{0,40}?: \S")


def setup(app: Any) -> dict[str, bool]:
    """Called by Sphinx; before napoleon, which reads the sections `Args:`, `Returns:` and so on."""
    app.connect("autodoc-process-docstring", _process, priority=400)
    app.connect("autodoc-process-signature", _sign)
    return {"parallel_read_safe": True}


def as_rst(lines: Iterable[str], fields: Iterable[str] = ()) -> list[str]:
    """The docstring's lines as reStructuredText.

    fields: names of which a line `name: ...` is an item; where what follows is indented below it, any name will do.
    """
    known = frozenset(fields)
    made: list[str] = []
    blocks = "\n".join(lines).split("\n\n")
    section = False
    for block in blocks:
        section = section or bool(SECTION.match(block.lstrip("\n").split("\n")[0]))
        text = block.split("\n")
        if text[0].lstrip().startswith(">>>"):
            made += text
        elif text[0].startswith("    ") and not section:
            made += ["::", "", *text]
        elif section:
            made += _with_examples(text)
        else:
            made += _listed(_escaped(text), known)
        made.append("")
    return made[:-1]


def _process(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    lines[:] = as_rst(lines, _fields(obj))


def plain_signature(signature: str | None) -> str | None:
    """As Python's grammar has it: `...` for a default that is made anew, and nothing where it says nothing.

    Example:
        >>> plain_signature("(parts: list[int] = <factory>)")
        '(parts: list[int] = ...)'
    """
    return "" if signature == "(*args, **kwargs)" else signature and signature.replace("<factory>", "...")


def _sign(app: Any, what: str, name: str, obj: Any, options: Any, signature: str | None, returns: str | None) -> Any:
    return plain_signature(signature), returns


def _fields(obj: Any) -> list[str]:
    """What the object is made with, and what it has."""
    try:
        parameters = list(inspect.signature(obj).parameters)
    except (TypeError, ValueError):
        parameters = []
    return [*parameters, *getattr(obj, "__annotations__", {}), *(each for each in dir(obj) if not each.startswith("_"))]


def _with_examples(lines: list[str]) -> list[str]:
    """A section: prose up to its first example, which stays as it is."""
    first = next((place for place, line in enumerate(lines) if line.lstrip().startswith(">>>")), len(lines))
    return [*_escaped(lines[:first]), *lines[first:]]


def _escaped(lines: list[str]) -> list[str]:
    """Code marks doubled, bars outside code escaped."""
    parts = CODE.split("\n".join(lines))  # every second one is code
    whole = "".join(f"``{part}``" if place % 2 else part.replace("|", r"\|") for place, part in enumerate(parts))
    return whole.split("\n") if lines else []


def _listed(lines: list[str], fields: frozenset[str]) -> Iterator[str]:
    """A paragraph in which lines `name: ...` become items, with what is indented below them."""
    item = False
    for place, line in enumerate(lines):
        hangs = place + 1 < len(lines) and lines[place + 1].startswith("  ") and bool(HANGING.match(line))
        starts = _items(line, fields) or (["* " + line] if hangs or (item and HANGING.match(line)) else [])
        if starts:
            yield from [] if item or place == 0 else [""]
            yield from starts
            item = True
        elif item and line.startswith(" "):
            yield "  " + line.strip()
        else:
            yield from [""] if item else []
            yield line
            item = False


def _items(line: str, fields: frozenset[str]) -> list[str]:
    """`a: one. b, c: two` as `* ``a``: one.` and `* ``b``, ``c``: two`; nothing where the line starts with no field."""
    name = "|".join(sorted(map(re.escape, fields), key=len, reverse=True)) or "(?!)"
    names = rf"(?:{name})(?:, (?:{name}))*: "
    if not re.match(names, line):
        return []
    found: list[str] = []
    for part in re.split(rf"(?<=[.;]) (?={names})", line):
        heading, _, words = part.partition(": ")
        found.append("* " + ", ".join(f"``{each}``" for each in heading.split(", ")) + f": {words}")
    return found

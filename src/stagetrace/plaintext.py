"""Text that somebody else wrote, made safe to show: characters that act or are not seen are written out."""

import unicodedata
from typing import Final

_HIDDEN = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})
"""Categories of Unicode: controls, marks of format and direction, halves of characters, unassigned ones, separators."""

# Letters and marks by their category that nothing is drawn for.
_BLANK = frozenset([0x34F, 0x115F, 0x1160, 0x17B4, 0x17B5, 0x2800, 0x3164, 0xFFA0, *range(0xE0100, 0xE01F0)])


class _Escapes(dict[int, str]):
    """For `str.translate`: each character as it is shown, found out when it first occurs."""

    def __missing__(self, code: int) -> str:
        character = chr(code)
        hidden = code in _BLANK or unicodedata.category(character) in _HIDDEN
        self[code] = character.encode("unicode_escape").decode() if hidden else character
        return self[code]


_CELL: Final = _Escapes()
_LINES: Final = _Escapes({ord("\n"): "\n", ord("\t"): "    "})


def printable(text: str, *, lines: bool = False) -> str:
    r"""The text with every character that would act on a terminal, or hide in it, written out as Python writes it.

    Those are control characters (also 0x80 to 0x9f), marks of direction, zero-width characters and joiners, separators
    of lines, halves of characters (which no terminal or file can hold), tags and unassigned characters. Letters of
    any script and pictures stay; pictures made of several by joiners come apart.

    lines: ends of lines stay, and tabs become blanks; otherwise they are written out too: right for one cell or line.

    Example:
        >>> printable("a \x1b[31mred\x07 label\n\u202egnp.exe"), printable("two\nlines", lines=True)
        ('a \\x1b[31mred\\x07 label\\n\\u202egnp.exe', 'two\nlines')
    """
    return text.translate(_LINES if lines else _CELL)

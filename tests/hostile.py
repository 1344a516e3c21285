"""Strings that want to act where they are shown, and how to find what could act."""

import unicodedata

STRINGS = (
    "\x1b[31mred\x1b[0m",
    "\x1b]8;;https://example.org\x1b\\a link\x1b]8;;\x1b\\",
    "\x1b]0;a title\x07",
    "\x1b[2J\x1b[1;1H cleared",
    "\x9b31m C1 \x85 next line \x90 and \x9d",
    "nul \x00, bell \x07, backspace \b\b\b, delete \x7f",
    "\rerror: not from here",
    "\u202egnp.exe\u202c and \u2066isolate\u2069 and \u200fmark\u061c",
    "zero\u200bwidth\u200c\u200d\u2060\ufeff\u00ad\u034f\u3164",
    "lines \u2028 and \u2029 and \x0b and \x0c",
    "[bold red]markup[/bold red] [link=https://example.org]here[/link] :skull: [/]",
    "half \ud83d a character \udc9f",
    "tags \U000e0041\U000e0042 and \U000e0100",
    "</script><script>window.stolen = 9</script><img src=x onerror=window.stolen=9>",
    '" onmouseover="window.stolen=9" x="',
    "javascript:window.stolen=9",
    "=HYPERLINK(1)+1-1@sum",
    "../../outside",
    "{task.description} {0} %s {{ 7 * 7 }}",
    "long " * 200,
)

BLANK = frozenset("\u034f\u115f\u1160\u17b4\u17b5\u3164\uffa0")


def acting(text: str, allowed: str = "\n") -> set[str]:
    """The characters of a text that act on a terminal, turn a line around, or are not seen."""
    hidden = {"Cc", "Cf", "Cs", "Zl", "Zp"}
    return {c for c in text if c not in allowed and (c in BLANK or unicodedata.category(c) in hidden)}

"""Sizes in bytes, as they are typed and as they are said."""

import re
from math import ceil

from stagetrace.errors import refuse

__all__ = ["as_size", "enough", "read_size"]

DECIMAL = {"B": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
UNITS = {**DECIMAL, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}


def read_size(word: str | int, where: str) -> int:
    """Bytes of a number with its unit, such as "8GiB", "8 GB" or "500MiB"; a whole number is bytes.

    Raises:
        DescriptionError: it is something else, or nothing.

    Example:
        >>> read_size("1.5KiB", "--budget"), read_size("8GB", "--budget"), read_size(4096, "budget")
        (1536, 8000000000, 4096)
    """
    if isinstance(word, bool) or not isinstance(word, (str, int)):
        refuse(f"{where} must be a size such as '8GiB' or a number of bytes, got {word!r}")
    if isinstance(word, int):
        size = word
    else:
        found = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?) ?([A-Za-z]+)", word.strip())
        unit = None if found is None else UNITS.get(found[2])
        if found is None or unit is None:
            refuse(
                f"{where} needs a number and a unit ({', '.join(UNITS)}), got '{word}'; type e.g. {where} 8GiB or "
                f"{where} 500MiB"
            )
        size = int(float(found[1]) * unit)
    if size < 1:
        refuse(f"{where} must be at least one byte, got '{word}'; type e.g. {where} 8GiB")
    return size


def as_size(size: float) -> str:
    """Bytes with a unit, three digits.

    Example:
        >>> as_size(512), as_size(3 * 2**20), as_size(2.5 * 2**30), as_size(180_000 * 2**20)
        ('512 B', '3 MiB', '2.5 GiB', '176 GiB')
    """
    value, units = float(size), ("B", "KiB", "MiB", "GiB", "TiB")
    for unit in units:
        if value < 1000 or unit == units[-1]:
            return f"{value:.3g} {unit}" if value < 1000 else f"{value:,.0f} {unit}"
        value /= 1024
    raise AssertionError


def enough(size: float) -> str:
    """A size to type that is no less than so many bytes: whole mebibytes, or whole tenths of a gibibyte.

    Example:
        >>> enough(255.4 * 2**20), enough(8 * 2**30), enough(8.01 * 2**30)
        ('256MiB', '8GiB', '8.1GiB')
    """
    if size < 1000 * 2**20:
        return f"{ceil(size / 2**20)}MiB"
    return f"{ceil(10 * size / 2**30) / 10:g}GiB"

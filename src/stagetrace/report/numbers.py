"""Numbers in words: a sign on each that has one, and no more digits than people read."""

import math

MINUS = "\u2212"
"""The minus sign proper: as wide as a plus, and read aloud."""


def signed(value: float) -> str:
    """Three significant digits with a sign.

    Example:
        >>> signed(0.01234), signed(-1234.5), signed(4.2e-7), signed(0.0)
        ('+0.0123', '−1234', '+4.20e−7', '0')
    """
    if value == 0:
        return "0"
    return ("+" if value > 0 else MINUS) + number(abs(value))


def number(value: float) -> str:
    """Three significant digits.

    Example:
        >>> number(0.5), number(123456.0), number(1e-9), number(math.inf)
        ('0.500', '1.23e5', '1.00e−9', 'infinite')
    """
    if not math.isfinite(value):
        return "unknown" if math.isnan(value) else "infinite"
    size = abs(value)
    if value == 0:
        return "0"
    if 1e-3 <= size < 1e4:
        digits = max(0, 2 - math.floor(math.log10(size)))
        return f"{value:.{digits}f}".replace("-", MINUS)
    mantissa, exponent = f"{value:.2e}".split("e")
    return f"{mantissa}e{int(exponent)}".replace("-", MINUS)


def percent(share: float) -> str:
    """A share from 0 to 1 in per cent; few decimals, but 100 % only if it is all.

    Example:
        >>> percent(0.5), percent(0.0004), percent(1.0), percent(0.9999)
        ('50 %', '0.04 %', '100 %', '99.99 %')
    """
    value = 100 * share
    digits = 0 if value in (0, 100) else 2 if value < 1 or value > 99 else 1 if value < 10 or value > 90 else 0
    return f"{value:.{digits}f} %"

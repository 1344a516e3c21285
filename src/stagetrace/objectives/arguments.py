"""Checks of an objective's own settings."""

import math
from numbers import Real
from typing import Any

from stagetrace.errors import refuse


def check_between(what: str, value: Any, above: float, below: float, usual: str) -> None:
    """Refuse anything but a real number above one bound and below another.

    Raises:
        DescriptionError: with what is usual.
    """
    number = isinstance(value, Real) and not isinstance(value, bool)
    if not (number and above < float(value) < below):
        upto = "" if below == math.inf else f" and below {below:g}"
        refuse(f"{what} must be a number above {above:g}{upto}, got {value!r}; {usual}")

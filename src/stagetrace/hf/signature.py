"""What a model's `forward` takes."""

import inspect
from typing import Any

from stagetrace.hf.packages import base_of


def takes(model: Any) -> frozenset[str]:
    """The names of its arguments, those of the base where adapters wrap it."""
    return frozenset(inspect.signature(base_of(model).forward).parameters)

"""The shared parameters stayed as they were."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, final

from torch import Tensor

from stagetrace.stages.links.link import Anchored, Link


@final
@dataclass(frozen=True)
class Frozen(Link):
    """The shared parameters were kept as the previous stage left them (Chen et al. 2020, case 1, eq. 2).

    Also what LoRA and linear probes are: the base is shared and kept, the adapter or the head is trained.

    Example:
        >>> Frozen("embedding").pairs
        {'embedding': 'embedding'}
    """

    keeps_shared: ClassVar[bool] = True

    def strength(self, anchored: Anchored) -> Mapping[str, float | Tensor]:
        """No shared parameter is trained, so none is pulled."""
        return dict.fromkeys(anchored.values, 0.0)

"""What an index keeps of gradients: the one thing that a build and a search ask of every kind of store.

components    coordinates in the principal components of some gradients (`components.py`)
words         of each word of a sequence a few numbers of its row of the embedding's gradient, and EK-FAC's coordinates
              of everything else (`words.py`)
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, Protocol

from torch import Tensor

from stagetrace.index.codes import Kind
from stagetrace.stages.bound import BoundStage

__all__ = ["Encoder", "Held", "Scorer", "Store", "StoreKind"]

StoreKind = Literal["components", "words"]

Held = Mapping[str, Tensor]
"""What is kept of a part's examples: the tensors of one file of codes."""

Encoder = Callable[[Sequence[int]], tuple[dict[str, Tensor], Tensor]]
"""From examples what is kept of them, and their gradients' products with the adjoints `[b, k]`, from the same pass."""

Scorer = Callable[[Held], Tensor]
"""From what is kept of some examples their approximate scores `[b, k]`; positive = harmful; unit: query loss."""


class Store(Protocol):
    """A store that was fitted, with the gradients of its stage's examples.

    drawn: the examples that it was fitted on, ascending. numbers: coordinates of an example. words: kept of an example
    besides, at most.
    """

    drawn: Sequence[int]
    numbers: int
    words: int

    def encoder(self, kind: Kind, adjoints: Tensor) -> Encoder:
        """For adjoints `[P, k]`, of which there may be none."""
        ...

    def scorer(self, adjoints: Tensor) -> Scorer:
        """For queries' adjoints `[P, k]`."""
        ...

    def agrees(self, held: Held, place: int, fresh: Held) -> bool:
        """Whether what is kept of the example at a place is what `fresh` has of it, alone and not rounded."""
        ...

    def bytes_each(self, kind: Kind) -> int:
        """Bytes of an example, at most."""
        ...

    def crowded(self, held: Held) -> int:
        """How many of these examples may have more words than there was room for."""
        ...

    def notes(self, bound: BoundStage, settings: Mapping[str, Any], crowded: int) -> list[str]:
        """What differs from what was asked for, and why; crowded: of all examples."""
        ...

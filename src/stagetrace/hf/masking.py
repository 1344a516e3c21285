"""Masks for masked language modelling that are the same whenever an example is read."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import numpy as np

from stagetrace.errors import refuse
from stagetrace.objectives.tokens import IGNORED


@final
@dataclass(frozen=True)
class Masking:
    """Which tokens of an example are to be predicted, and what stands in their place (Devlin et al. 2019, section 3.1).

    Each token is chosen with `probability`; a chosen one becomes the mask token (`masked`), a token drawn at random
    (`random`), or stays (the rest). All of it is a function of the seed, the example's index and its tokens: the batch,
    the process and the number of times the example was read do not matter. Special tokens are never chosen, and at
    least one token of a sentence is, unless all of them are special.

    Args:
        probability: of a token to be chosen, above 0 and at most 1.
        seed: another seed draws other masks.
        masked, random: shares of the chosen tokens, together at most 1.

    Raises:
        DescriptionError: a number is out of its range.

    Example:
        >>> special = [True, False, False, False, True]
        >>> ids, labels = Masking(0.5, seed=1).apply([2, 7, 8, 9, 3], special, 0, mask=4, size=10)
        >>> ids, labels
        ([2, 7, 4, 9, 3], [-100, -100, 8, -100, -100])
    """

    probability: float = 0.15
    seed: int = 0
    masked: float = 0.8
    random: float = 0.1

    def __post_init__(self) -> None:
        if not (isinstance(self.probability, (int, float)) and 0 < self.probability <= 1):
            refuse(f"Masking(probability=...) must be above 0 and at most 1, got {self.probability!r}; 0.15 is usual")
        if not isinstance(self.seed, int) or isinstance(self.seed, bool) or self.seed < 0:
            refuse(f"Masking(seed=...) must be a whole number of at least 0, got {self.seed!r}")
        shares = (self.masked, self.random)
        if not all(isinstance(share, (int, float)) and 0 <= share <= 1 for share in shares) or sum(shares) > 1 + 1e-9:
            refuse(
                f"Masking(masked=..., random=...) must be shares of the chosen tokens, together at most 1, got "
                f"{shares}; 0.8 and 0.1 are usual"
            )

    def apply(
        self, tokens: Sequence[int], special: Sequence[bool], index: int, *, mask: int, size: int
    ) -> tuple[list[int], list[int]]:
        """The tokens of example `index` after masking, and their labels: the token where it was chosen, else -100.

        Args:
            special: per token, whether it is one that is never chosen (padding is).
            mask: the mask token.
            size: random tokens are drawn from `0 .. size - 1`.
        """
        ids, fixed = np.asarray(tokens, dtype=np.int64), np.asarray(special, dtype=bool)
        draws = np.random.default_rng((self.seed, index))
        # always the same number of draws in the same order, so that one setting does not shift the draws of another
        choice, fate, other = draws.random(len(ids)), draws.random(len(ids)), draws.integers(0, size, len(ids))
        chosen = ~fixed & (choice < self.probability)
        if not chosen.any() and not fixed.all():
            chosen[np.where(fixed, np.inf, choice).argmin()] = True
        shown = np.where(fate < self.masked, mask, np.where(fate < self.masked + self.random, other, ids))
        return np.where(chosen, shown, ids).tolist(), np.where(chosen, ids, IGNORED).tolist()

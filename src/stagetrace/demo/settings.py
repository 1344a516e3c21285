"""What the demo does, in numbers."""

from dataclasses import dataclass
from typing import final


@final
@dataclass(frozen=True)
class Settings:
    """Sizes, penalties and seed. Weight decay is what makes both minima strict, and so the scores well defined.

    pretrain_examples: of the digits 0 to 3, finetune_examples: of 4 to 9; the rest of each tests.
    channels: of the two convolutions.
    pretrain_decay, finetune_decay: weight decay of the two stages.
    adam_steps: full-batch steps before Newton takes over.
    shown: digits in each table; largest, random: scores checked by solving again; the random ones are drawn by the
        seed before there are scores.
    """

    pretrain_examples: int = 600
    finetune_examples: int = 600
    channels: tuple[int, int] = (4, 8)
    pretrain_decay: float = 0.01
    finetune_decay: float = 0.001
    adam_steps: int = 200
    tolerance: float = 1e-9
    shown: int = 6
    largest: int = 10
    random: int = 12
    seed: int = 0

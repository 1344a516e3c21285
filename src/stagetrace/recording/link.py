"""A stage that is differentiated through its recorded training."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol, final, runtime_checkable

from torch import Tensor

from stagetrace.errors import refuse
from stagetrace.recording.recorded import Recorded
from stagetrace.recording.sessions import joined
from stagetrace.stages.bound import BoundStage
from stagetrace.stages.links.link import Anchored, Link
from stagetrace.stages.links.names import checked_pairs
from stagetrace.stages.stage import Stage


@runtime_checkable
class Trains(Protocol):
    """What trains a stage and records it, such as `stagetrace.validation.Steps`."""

    def record(self, bound: BoundStage, previous: Stage | None, folder: Path, seed: int) -> Stage:
        """The stage as it is after training, linked to its recording in `folder`.

        previous: the stage before, from which it takes over what is shared; None at the first.
        """
        ...


@final
@dataclass(frozen=True)
class Unrolled(Link):
    """The stage is what its recorded training made of its start: differentiated step by step, no minimum assumed.

    Where `Frozen` and `Proximal` take a stage to be at a minimum, this one follows the steps that were taken, in order,
    with their batches, learning rates, momenta, clipping and random masks. The derivative is exact for that training:
    it says what the query loss would have become, had an example's loss weighed a little more or less in every batch
    that it was in. What is shared may have been kept, trained further, or both; new parameters and the optimiser's
    state at the start are constants.

    A stage that was not recorded can be trained for the purpose: `Unrolled(shared, Steps(...), seeds=(0, 1))`
    has the library train it by these steps, from the stage's own values with what is shared taken from the stage
    before, once for each order of the batches. Scores are then the mean over the orders, each at the model in which it
    ended and none weighing more than the median one; every later stage must be trained so as well.

    Args:
        shared: which parameters the stage took over, as for `Frozen` and `Proximal`; nothing at a chain's first stage.
        recording: the folder of a `Recording`, or what `Recorded.load` made of it; of a training that was interrupted
            and resumed a list of them, one for each session. The stage's model must be the one in which the recording
            ended, or a state that was kept on the way (the best checkpoint).
        seeds: of the orders of the batches, where the library trains.
        memory: bytes for the states between two that were kept, while the steps run backwards; where they do not fit,
            some steps are replayed once more. The scores do not depend on it.

    Raises:
        DescriptionError: no recording is given, or sessions that do not follow one another.
        ResultsError: the folder holds none, or it cannot be read.

    Source: Maclaurin, Duvenaud & Adams (2015) for one stage; through several stages by the chain rule.
    """

    shared: Any = ()
    recording: "Recorded | Trains | str | Path | Sequence[Recorded | str | Path] | None" = None  # pyright: ignore[reportIncompatibleMethodOverride]
    seeds: Sequence[int] = (0,)
    memory: int = 2 * 2**30  # pyright: ignore[reportIncompatibleMethodOverride, reportIncompatibleVariableOverride]

    in_training_loss: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.recording is None:
            refuse(
                "Unrolled: which recording? Unrolled(shared, 'runs/finetune/recording'); at the first stage of a chain "
                "Unrolled(recording='runs/pretrain/recording')"
            )
        object.__setattr__(self, "seeds", tuple(self.seeds))
        if isinstance(self.recording, Trains):
            if not self.seeds or len(set(self.seeds)) < len(self.seeds):
                refuse(f"Unrolled: seeds must be one or more different whole numbers, got {list(self.seeds)}")
        else:
            object.__setattr__(self, "recording", load_recording(self.recording))
        if not isinstance(self.memory, int) or isinstance(self.memory, bool) or self.memory < 1:
            refuse(f"Unrolled: memory must be a number of bytes, such as {2 * 2**30:,} for 2 GiB, got {self.memory!r}")
        super().__post_init__()

    @property
    def pairs(self) -> dict[str, str]:
        """`{this stage's name or prefix: previous stage's}`; empty at a chain's first stage."""
        return (
            {}
            if isinstance(self.shared, (tuple, list, dict)) and not self.shared
            else checked_pairs("Unrolled", self.shared)
        )

    @property
    def settings(self) -> dict[str, Any]:
        """The recording by the digest of its record, which holds those of all its files."""
        if isinstance(self.recording, Trains):
            return {"steps": self.recording, "seeds": self.seeds}
        assert isinstance(self.recording, Recorded)  # made of what was given
        return {"recording": self.recording.digest[:16], "steps": self.recording.steps}

    def strength(self, anchored: Anchored) -> Mapping[str, float | Tensor]:
        """Nothing pulls: where the parameters went is in the steps."""
        return dict.fromkeys(anchored.values, 0.0)


def load_recording(given: Recorded | str | Path | Sequence[Recorded | str | Path]) -> Recorded:
    """A recording by its folder, or by those of the sessions of one training."""
    if isinstance(given, Recorded | str | Path):
        return Recorded.load(given)
    return joined([Recorded.load(each) for each in given])

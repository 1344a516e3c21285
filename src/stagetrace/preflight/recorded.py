"""Is the recording of a stage's training the training that led to its model?"""

import time

import torch

from stagetrace.checks.finding import Finding, Level
from stagetrace.progress import Progress
from stagetrace.progress.task import clock
from stagetrace.recording.link import Trains
from stagetrace.replay.backward import Reverse
from stagetrace.replay.examples import check_examples
from stagetrace.replay.fitting import check_decay, fitting
from stagetrace.stages.bound import BoundStage
from stagetrace.stages.gradient import Gradient


def replays(bound: BoundStage, progress: Progress) -> Finding:
    """Run the last block of a recorded training forwards and backwards, and hold it against the record.

    Raises:
        DescriptionError, ResultsError, DataError: it is not this stage's, or does not come out as recorded.
        DifferentiationError: the gradient of a step has no derivative.
    """
    if isinstance(bound.recording, Trains):
        return Finding(
            bound.name, "recording", Level.OK, f"the library trains the stage when it is scored: {bound.recording}"
        )
    started = time.perf_counter()
    check_decay(bound)
    recorded = fitting(bound, bound.recording)
    remarks = check_examples(bound, recorded)
    block = recorded.blocks[-1]
    nothing = Gradient(bound.trained.zeros(1), bound.inherited.zeros(1), bound.statistics.zeros(1))
    with progress.task(f"replaying the end of {bound.stage.where}", len(block), "steps") as advance:
        with torch.random.fork_rng():
            reverse = Reverse(bound, recorded, nothing, bound.replay_memory)
            reverse.block(block)
        advance(len(block))
    seconds = time.perf_counter() - started
    found, longest = reverse.agreement, max(map(len, recorded.blocks))
    state = sum(v.numel() * v.element_size() for v in bound.trained_values.values()) / 2**20
    text = (
        f"the last {len(block):,} of {recorded.steps:,} recorded steps come out as they were "
        f"({'; '.join((*found.notes, *remarks))}); all of them and their derivative take about "
        f"{clock(seconds / len(block) * recorded.steps)} for one query, and up to {longest:,} states of some "
        f"{3 * state:,.1f} MiB in memory"
    )
    return Finding(bound.name, "recording", Level.NOTE if found.odd_scales else Level.OK, text, seconds)

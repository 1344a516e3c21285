"""A chain's retraining by steps, recorded as it runs: what `Unrolled` needs, made by the library itself."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from stagetrace.recording import Recording, Unrolled
from stagetrace.stages.bound import BoundStage
from stagetrace.stages.chain import Chain
from stagetrace.stages.stage import Stage
from stagetrace.validation.fits.fit import one_copy
from stagetrace.validation.fits.steps import Steps
from stagetrace.validation.rebinding import with_values


def record_steps(chain: Chain, fits: Mapping[str, Steps], folder: Path, seed: int) -> Chain:
    """Train each stage as a retraining without any removal does, record it, and link it to its recording.

    The chain that comes back is the control of that retraining: its models are those where the steps ended, its scores
    are exact for these very steps, and so predict what `validate` measures with the same fits and seed.

    Args:
        fits: how each stage is trained, by its name.
        folder: a recording a stage is written into it.
        seed: of the order of the batches, and of initial values where the start is cold.

    Raises:
        DescriptionError: a stage has no fit, its link's pull would be in the training loss (no recorded step has it),
            or its optimiser cannot be told of its weight decay.
    """
    stages = list[Stage]()
    for bound in chain:
        before = None if not stages else dict(stages[-1].model.named_parameters())
        stages.append(_trained(bound, fits[bound.name], before, folder / bound.name, seed))
    return Chain(*stages)


def _trained(bound: BoundStage, fit: Steps, before: Mapping[str, Tensor] | None, folder: Path, seed: int) -> Stage:
    copies = None if before is None else {name: p.detach().unsqueeze(0) for name, p in before.items()}
    values = one_copy(fit.start_of(bound, copies, 1, seed), 0)
    stage = with_values(bound.stage, values)
    model = stage.model.eval()  # as the retraining: no dropout, running statistics as they are
    parameters = [dict(model.named_parameters())[name] for name in bound.trained.names]
    optimizer = fit.rule.alone(parameters, bound.trained, bound.stage.weight_decay)
    recording = Recording(folder, model, optimizer, inputs="again")
    with recording:
        for step, batch in enumerate(fit.batches(bound, seed)):
            for group in optimizer.param_groups:
                group["lr"] = fit.rate_at(step)
            with recording.batch(batch.indices, batch.content):
                outputs = stage.loss.outputs(model, batch.content)
                optimizer.zero_grad()
                stage.loss.losses(outputs, batch.content).mean().backward()
            optimizer.step()
    optimizer.zero_grad()
    shared = {} if bound.previous is None else bound.inherited_from | bound.anchored_to
    return replace(stage, link=Unrolled(shared, folder), weight_decay=0.0)

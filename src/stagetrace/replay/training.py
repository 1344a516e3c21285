"""A stage's model as its training called it: in training mode, with its own running statistics and random numbers."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any, final

import torch
from torch import Tensor, nn

from stagetrace.errors import ResultsError, refuse
from stagetrace.recording.content import digest, read
from stagetrace.recording.names import plain_name
from stagetrace.recording.step import Micro
from stagetrace.replay.recomputing import recomputing_off, without_recomputing
from stagetrace.stages.bound import BoundStage
from stagetrace.stages.copied import private_copy
from stagetrace.stages.data import Batch
from stagetrace.stages.device import to_device
from stagetrace.stages.differentiable_layers import replace_layers
from stagetrace.stages.differentiable_norms import statistics_places
from stagetrace.stages.evaluation import Evaluation
from stagetrace.stages.predicted import Places, places_of
from stagetrace.stages.space import Params


def check_weights(bound: BoundStage) -> None:
    """Refuse weights of the examples beside recorded steps, which have them in their loss or not at all.

    Raises:
        DescriptionError: the stage has them.
    """
    if bound.stage.example_weights is not None:
        refuse(
            f"{bound.stage.where}: weights= are those of a mean over all examples, but this stage is differentiated "
            "through recorded steps, which weigh the examples of each batch in their own way; give the loss that was "
            "recorded, an objective whose losses are multiplied by the examples' weights, and leave weights= out"
        )


@final
class Training:
    """The losses of recorded batches at any parameters: random masks, modes and running statistics as recorded.

    The model is a copy, and its buffers are its own: a forward pass moves running statistics.

    mixed: the layers that normalised by their batch so far, which makes examples no longer independent.
    """

    def __init__(self, bound: BoundStage) -> None:
        check_weights(bound)
        stage = bound.stage
        self._bound = bound
        self.model = without_recomputing(replace_layers(private_copy(stage.model, stage.where), stage.where))
        self._risk = replace(bound.risk, evaluation=Evaluation(self.model))
        self.mixed: set[str] = set()
        self._norms = {plain_name(name): (module, at) for name, module, at in statistics_places(self.model)}
        buffers = {plain_name(name): buffer for name, buffer in self.model.named_buffers()}
        self._others = {name: buffer for name, buffer in buffers.items() if name not in self._norms}

    @property
    def statistics(self) -> Params:
        """The running statistics as the last forward pass left them, with a history of how it made them."""
        return {name: getattr(module, attribute) for name, (module, attribute) in self._norms.items()}

    @property
    def buffers(self) -> Params:
        """A copy of the buffers as they are, running statistics among them."""
        return {name: buffer.detach().clone() for name, buffer in {**self._others, **self.statistics}.items()}

    def put(self, buffers: Params) -> None:
        """Put the buffers at other values; a forward pass uses running statistics with the history that these have."""
        for name, (module, attribute) in self._norms.items():
            if name in buffers:
                setattr(module, attribute, buffers[name])
        with torch.no_grad():
            for name, buffer in self._others.items():
                if name in buffers:
                    buffer.copy_(buffers[name])

    def losses(self, trained: Params, inherited: Params, micro: Micro) -> Tensor:
        """One loss per example of the batch, as its forward pass in training computed it.

        Sets the random generators as recorded, and leaves them where the forward pass did.
        """
        batch = self._started(micro)
        with recomputing_off(), _autocast(micro):
            return self._risk.losses(trained, inherited, batch)

    def token_losses(self, trained: Params, inherited: Params, micro: Micro) -> tuple[Tensor, Places]:
        """The same token by token, `[batch, length]`, and where the predicted tokens are."""
        batch = self._started(micro)
        with recomputing_off(), _autocast(micro):
            losses = self._risk.token_losses(trained, inherited, batch)
        return losses, places_of(self._risk, batch)

    def _started(self, micro: Micro) -> Batch:
        """The batch, with modules and random generators as they were before its forward pass."""
        content = self._content(micro)
        self._as_recorded(micro)
        return Batch(micro.ids, content)

    def _as_recorded(self, micro: Micro) -> None:
        still = set(micro.still)
        for name, module in self.model.named_modules():
            module.training = plain_name(name) not in still
            if module.training and isinstance(module, nn.modules.batchnorm._BatchNorm):  # pyright: ignore[reportPrivateUsage]
                self.mixed.add(plain_name(name))
        for device, state in micro.generators.items():
            if device == "cpu":
                torch.set_rng_state(state)
            elif torch.cuda.is_available():
                torch.cuda.set_rng_state(state, device)

    def _content(self, micro: Micro) -> Any:
        space = self._bound.trained
        if not isinstance(micro.content, str):
            return to_device(read(*micro.content), space.dtype, space.device, self._bound.stage.where)
        (batch,) = self._bound.stage.examples.read([micro.ids])
        if digest(batch.content) != micro.content:
            raise ResultsError(
                f"{self._bound.stage.where}: the batch of the examples {_few(micro.ids)} is not the one that was "
                "trained on (its digest differs): the data set or its collation draws at random, or has changed; "
                "record with inputs='kept'"
            )
        return to_device(batch.content, space.dtype, space.device, self._bound.stage.where)


def _autocast(micro: Micro) -> AbstractContextManager[Any]:
    """Mixed precision as the batch was computed in; the parameters themselves are the ones that were trained."""
    if micro.autocast is None:
        return nullcontext()
    device, dtype = micro.autocast
    return torch.autocast(device, getattr(torch, dtype))


def _few(ids: Sequence[int]) -> str:
    return ", ".join(map(str, ids[:5])) + (", ..." if len(ids) > 5 else "")

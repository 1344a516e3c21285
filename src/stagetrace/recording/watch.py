"""Watching a training: PyTorch's own hooks say what each step was, and the training itself stays as it is.

loader             which examples, and the batch                              `begin`
model              the random generators' states, and which modules rest      a hook before its forward pass
its parts          whether mixed precision is on in there                     a hook before the first that is called
autograd.backward  the number that goes backward, as the loop divided it      replaced while recording
clip_grad_norm_    the limit, and the norm before                             replaced while recording
optimiser          settings as used and the gradient's norm; a step is done   hooks before and after `step`

Where the batch goes forward and backward inside the step (a closure), the settings are read when the closure returns.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any, Protocol, final

import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

from stagetrace.errors import DescriptionError
from stagetrace.recording.average import Average
from stagetrace.recording.content import digest, written
from stagetrace.recording.hooks import Hook, replaced
from stagetrace.recording.names import plain_name
from stagetrace.recording.optimizers.rule import require_dense
from stagetrace.recording.refused import check_norm, is_compiled, refuse_other_optimizer, refuse_scaler
from stagetrace.recording.seen import (
    Number,
    Pending,
    Seen,
    autocast,
    checked_ids,
    generators,
    norm_of,
    number_of,
    parts_of,
    settings_of,
    told,
)
from stagetrace.recording.state_of import slots_of, state_of
from stagetrace.recording.step import State, Step

_UNREAD = 64
"""Steps whose losses and norms may stay on an accelerator before it is waited for."""

# of all tensors at once: private, but what torch.optim itself is made of
foreach_copy: Callable[[list[Tensor], list[Tensor]], None] = getattr(torch, "_foreach_copy_")  # noqa: B009


class Sink(Protocol):
    """Where steps and states go."""

    def wants(self, step: int) -> bool:
        """Whether the state before this step is kept."""
        ...

    def state(self, step: int, state: State, *, asked: bool = False) -> None:
        """The state before a step. asked: it is that of a checkpoint, and stays."""
        ...

    def step(self, step: Step) -> None: ...


@final
class Watch:
    """Sees the steps of one optimiser on one model, and hands them to a sink.

    keeps_inputs: whether batches are handed on whole; else their digests alone. average: what holds a moving average of
    the parameters. seconds: spent on watching so far. required: the parameters that have required a gradient so far.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        sink: Sink,
        *,
        keeps_inputs: bool,
        average: Any = None,
    ) -> None:
        self.model, self.optimizer, self._sink, self._keeps = model, optimizer, sink, keeps_inputs
        self.names = {id(p): plain_name(name) for name, p in model.named_parameters()}
        stepped = {id(p) for group in optimizer.param_groups for p in group["params"]}
        self.trained = {plain_name(name): p for name, p in model.named_parameters() if id(p) in stepped}
        self.required = [name for name, p in self.trained.items() if p.requires_grad]
        self._average = None if average is None else Average(average, model, self.trained)
        self._buffer_names = [plain_name(name) for name, _ in model.named_buffers()]
        self._modules = [(plain_name(name), module) for name, module in model.named_modules()]  # walked once
        self.steps = 0
        self._pending: list[Pending] = []
        self._clips: list[tuple[tuple[str, ...], float, float, Number]] = []
        self._settings: Any = None
        self._norm: Number | None = None
        self._resting: tuple[str, ...] = ()
        self._unread: list[Seen] = []
        self._last: tuple[list[Tensor], list[Tensor]] | None = None
        self._hooks = ExitStack()
        self._device = next(iter(self.trained.values())).device
        self.seconds = 0.0

    @property
    def groups(self) -> list[list[str]]:
        """The names of the parameters in each group."""
        return [[self.names[id(p)] for p in group["params"]] for group in self.optimizer.param_groups]

    def start(self) -> None:
        """Put the hooks on."""
        handles = [
            self.optimizer.register_step_pre_hook(self._before_step),
            self.optimizer.register_step_post_hook(self._after_step),
            register_optimizer_step_pre_hook(self._before_any_step),
        ]
        if not is_compiled(self.model, inside=True):
            handles.append(self.model.register_forward_pre_hook(Hook(self._before_forward)))
        if not is_compiled(self.model):
            before_part = Hook(self._before_part)
            handles += [part.register_forward_pre_hook(before_part) for part in parts_of(self.model)]
        for handle in handles:
            self._hooks.callback(handle.remove)
        self._hooks.callback(replaced(torch.autograd, "backward", self._backward))
        self._hooks.callback(replaced(torch.amp.GradScaler, "scale", refuse_scaler))
        for module in (torch.nn.utils, torch.nn.utils.clip_grad):
            self._hooks.callback(replaced(module, "clip_grad_norm_", self._clip))

    def stop(self) -> State | None:
        """Take the hooks off. Returns the state after the last step, as the optimiser left it; None without a step."""
        self._hooks.close()
        self._tell()
        if self._last is None:
            return None
        values, buffers = (
            {name: kept.cpu().contiguous() for name, kept in zip(names, each, strict=True)}
            for names, each in zip((self.trained, self._buffer_names), self._last, strict=True)
        )
        average = {} if self._average is None else self._average.values
        return State(values, buffers, slots_of(self.trained, self.optimizer), average)

    def keep(self) -> None:
        """Keep the state as it is now, between two steps: it may be that of a checkpoint."""
        if not self._pending:
            self._tell()
            self._sink.state(self.steps, self._state(), asked=True)

    def _tell(self) -> None:
        """Hand the steps so far to the sink; by then the average has been updated, too."""
        unread, self._unread = self._unread, []
        if unread and self._average is not None:
            assert self._last is not None
            now = dict(zip(self.trained, self._last[0], strict=True))
            unread = [replace(unread[0], average=self._average.look(now, self.steps))]  # there is one at a time
        for step in told(unread):
            self._sink.step(step)

    def begin(self, ids: Sequence[int], content: Any) -> None:
        """A batch of these examples is about to go forward."""
        started = time.perf_counter()
        ids = checked_ids(ids)
        if self._pending and self._pending[-1].loss is None:
            self._pending.pop()  # it was skipped
        if not self._pending:
            if self._average is not None:
                self._tell()
            if self._sink.wants(self.steps):
                self._tell()
                self._sink.state(self.steps, self._state())
        # copied now: a loop may change its batch on the way
        self._pending.append(Pending(ids, written(content) if self._keeps else digest(content)))
        self.seconds += time.perf_counter() - started

    def before_forward(self) -> None:
        """The forward pass is about to begin; called where that is known better than by the model's call."""
        if not self._pending or self._pending[-1].forward:
            return
        current = self._pending[-1]
        current.forward, current.generators, current.autocast = True, generators(), autocast(self._device)

    def _before_forward(self, module: nn.Module, arguments: Any) -> None:
        del arguments
        if torch.is_grad_enabled() and module.training:
            started = time.perf_counter()
            self.before_forward()
            self.seconds += time.perf_counter() - started

    def _before_part(self, module: nn.Module, arguments: Any) -> None:
        """Mixed precision may begin within the model's own call: accelerate wraps its `forward`."""
        del module, arguments
        if self._pending and torch.is_grad_enabled() and not self._pending[-1].inside:
            self._pending[-1].inside, self._pending[-1].autocast = True, autocast(self._device)

    def _backward(self, original: Callable[..., Any], tensors: Any, *arguments: Any, **named: Any) -> Any:
        roots = [tensors] if isinstance(tensors, Tensor) else list(tensors)
        if self._pending and all(root.numel() == 1 for root in roots):
            started = time.perf_counter()
            current = self._pending[-1]
            for loss in map(number_of, roots):
                current.loss = loss if current.loss is None else current.loss + loss
            if current.still is None:
                current.still = tuple(name for name, module in self._modules if not module.training)
            self.seconds += time.perf_counter() - started
        return original(tensors, *arguments, **named)

    def _clip(self, original: Callable[..., Any], parameters: Any, max_norm: float, *rest: Any, **named: Any) -> Any:
        given = [parameters] if isinstance(parameters, Tensor) else list(parameters)
        kind = float(rest[0] if rest else named.get("norm_type", 2.0))
        names = tuple(self.names[id(p)] for p in given if id(p) in self.names)
        if not names:  # another model's
            return original(given, max_norm, *rest, **named)
        check_norm(kind)
        norm = original(given, max_norm, *rest, **named)
        self._clips.append((names, float(max_norm), kind, number_of(norm)))
        return norm

    def _before_any_step(self, optimizer: torch.optim.Optimizer, arguments: Any, named: Any) -> None:
        del arguments, named
        if optimizer is not self.optimizer:
            refuse_other_optimizer(optimizer, self.names)

    def _before_step(
        self, optimizer: torch.optim.Optimizer, arguments: Any, named: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        closure = arguments[1] if len(arguments) > 1 else named.get("closure")
        if closure is None:
            self._read(optimizer)
            return None

        def watched() -> Any:
            loss = closure()
            self._read(optimizer)
            return loss

        return (arguments[0], watched), {name: value for name, value in named.items() if name != "closure"}

    def _read(self, optimizer: torch.optim.Optimizer) -> None:
        started = time.perf_counter()
        self._check_average()
        self._settings = [settings_of(group) for group in optimizer.param_groups]
        self._resting = tuple(name for name, p in self.trained.items() if p.grad is None)
        self.required += [name for name, p in self.trained.items() if p.requires_grad and name not in self.required]
        gradients = {name: p.grad for name, p in self.trained.items() if p.grad is not None}
        for name, gradient in gradients.items():
            if gradient.layout is not torch.strided:
                require_dense(gradient, f"recording: the gradient of '{name}'")
        self._norm = number_of(norm_of(list(gradients.values())))
        self.seconds += time.perf_counter() - started

    def _after_step(self, optimizer: torch.optim.Optimizer, arguments: Any, named: Any) -> None:
        del optimizer, arguments, named
        started = time.perf_counter()
        done = [pending for pending in self._pending if pending.loss is not None]
        if not done:
            raise DescriptionError(
                f"recording: optimizer.step() number {self.steps + 1} came without a batch that went backward; go over "
                "recording.loader(loader), or write `with recording.batch(ids, batch):` around forward and backward"
            )
        assert self._norm is not None
        self._unread.append(Seen(done, self._settings, self._clips, self._norm, self._resting))
        self._pending, self._clips, self.steps = [], [], self.steps + 1
        self._keep_last()
        if self._average is None and (self._device.type == "cpu" or len(self._unread) == _UNREAD):
            self._tell()
        self.seconds += time.perf_counter() - started

    def _state(self) -> State:
        return state_of(self.model, self.trained, self.optimizer, self._average)

    def _check_average(self) -> None:
        """Refuse an update between a batch and its step: the state before the batch has been kept by then.

        Raises:
            DescriptionError: the average was updated.
        """
        if self._average is not None and self._average.moved():
            raise DescriptionError(
                f"recording: the average was updated between the batch and its optimizer.step() (step "
                f"{self.steps + 1:,}); update it right after optimizer.step(), before the next batch is read"
            )

    def _keep_last(self) -> None:
        """Copy the values where the optimiser left them: what comes after may load others (the best checkpoint)."""
        now = list[Tensor](self.trained.values()), list(self._buffers())
        if self._last is None:
            self._last = [value.detach().clone() for value in now[0]], [buffer.detach().clone() for buffer in now[1]]
            return
        with torch.no_grad():
            for kept, values in zip(self._last, now, strict=True):
                if values:
                    foreach_copy(kept, values)

    def _buffers(self) -> Iterator[Tensor]:
        """The model's, in the order of `named_buffers`, by the list of its modules: to walk through it takes time."""
        seen = set[int]()
        for _, module in self._modules:
            for buffer in module._buffers.values():  # pyright: ignore[reportPrivateUsage]
                if buffer is not None and id(buffer) not in seen:
                    seen.add(id(buffer))
                    yield buffer

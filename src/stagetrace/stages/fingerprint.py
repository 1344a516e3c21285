"""What identifies a model, a data set and a stage: digests of contents, so that a resumed run is the same run."""

import hashlib
import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from stagetrace.objectives.objective import Objective, Plain, name_of
from stagetrace.parallel import world
from stagetrace.progress import Progress, Silent
from stagetrace.stages.data import Examples
from stagetrace.stages.problem import Problem

Json = dict[str, Any]


def fingerprint_problem(problem: Problem, progress: Progress | None = None) -> Json:
    """A stage's identity as plain values: model, objective, data, link and the settings that move its numbers."""
    stage = problem.stage
    return {
        "name": stage.name,
        "model": fingerprint_model(stage.model),
        "objective": fingerprint_objective(stage.loss),
        "data": fingerprint_examples(stage.examples, progress),
        "link": repr(stage.link),
        "weight_decay": stage.weight_decay,
        "batch_size": stage.batch_size,
    }


def fingerprint_model(model: nn.Module) -> Json:
    """Class, number of parameters, and a digest of every parameter's and buffer's name, type and bytes."""
    sha = hashlib.sha256()
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        sha.update(name.encode())
        _add(sha, tensor)
    trained = sorted(name for name, p in model.named_parameters() if p.requires_grad)
    sha.update("\n".join(trained).encode())
    return {
        "class": type(model).__qualname__,
        "parameters": sum(p.numel() for p in model.parameters()),
        "sha256": sha.hexdigest(),
    }


def fingerprint_objective(objective: Objective) -> str:
    """The objective's name and settings; for a plain function, its name and a digest of its source."""
    if not isinstance(objective, Plain):
        return name_of(objective)
    try:
        source = hashlib.sha256(inspect.getsource(objective.function).encode()).hexdigest()[:16]
    except (OSError, TypeError):
        source = "source unknown"
    return f"{name_of(objective)} ({source})"


def fingerprint_examples(examples: Examples, progress: Progress | None = None) -> Json:
    """Number of examples and a digest of all their contents, read once; sharded over processes."""
    plan = world().shard(examples.plan())
    digests: list[bytes] = []
    with (progress or Silent()).task(f"fingerprint of {examples.where}", sum(map(len, plan)), "examples") as advance:
        for batch in examples.read(plan):
            digests.append(digest(batch.content))
            advance(len(batch))
    sha = hashlib.sha256(b"".join(d for part in world().gather(digests) for d in part))
    return {"examples": len(examples), "sha256": sha.hexdigest()}


def digest(content: Any) -> bytes:
    """SHA-256 of a batch: nested tensors, arrays, numbers, strings and their structure."""
    sha = hashlib.sha256()
    _add(sha, content)
    return sha.digest()


def _add(sha: Any, content: Any) -> None:
    """Feed a value to the hash. Objects of unknown kind count by type only, since their text may hold an address."""
    sha.update(type(content).__name__.encode())
    if isinstance(content, Tensor):
        flat = content.detach().cpu().contiguous().reshape(-1)
        sha.update(f"{content.dtype}{tuple(content.shape)}".encode())
        sha.update(flat.view(torch.uint8).numpy().data)
    elif isinstance(content, Mapping):
        for key, value in content.items():
            _add(sha, str(key))
            _add(sha, value)
    elif isinstance(content, (bytes, str, int, float, bool, type(None))):
        sha.update(content if isinstance(content, bytes) else repr(content).encode())
    elif isinstance(content, Sequence):
        sha.update(str(len(content)).encode())
        for value in content:
            _add(sha, value)

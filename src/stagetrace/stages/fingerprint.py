"""What identifies a model, a data set and a stage: digests of contents, so that a resumed run is the same run."""

from collections.abc import Generator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from itertools import chain
from typing import Any

import torch
from torch import nn

from stagetrace.objectives.objective import Objective, Plain
from stagetrace.parallel import world
from stagetrace.progress import Progress, Silent
from stagetrace.stages.bound import BoundStage
from stagetrace.stages.data import Collate, Examples
from stagetrace.stages.identity import Identity
from stagetrace.stages.identity.origin import library_of
from stagetrace.stages.identity.settings import settings_of
from stagetrace.stages.links.link import Link
from stagetrace.stages.shards import sizes_of, whole_values

Json = dict[str, Any]

SCHEME = 2
"""Which fingerprints these are; those of scheme 1, without a number, saw neither attributes nor code."""

NOT_TAKEN = "not taken"
"""Stands for the digest of a data set that was not read for one."""

ENDS = 32
"""Examples looked at on each end of a data set that is not read for its digest."""


_Told = tuple[list[bytes], list[str], set[str]]

_READ: ContextVar[dict[int, tuple[Examples, list[_Told]]] | None] = ContextVar("data sets read", default=None)
"""What was found of each data set in the job at hand, by its `id`; it is held on to, or that would be another's."""


def fingerprint_stage(
    bound: BoundStage, progress: Progress | None = None, identity: Identity | None = None, *, read: bool = True
) -> Json:
    """A stage's identity as plain values: model, objective, data, link and the settings that move its numbers.

    identity: collects the packages met; read: whether the data set is read for its digest.
    """
    stage, identity, ids = bound.stage, identity or Identity(), bound.stage.example_ids
    return {
        "name": stage.name,
        "model": fingerprint_model(stage.model, identity),
        "objective": fingerprint_objective(stage.loss, stage.model, identity),
        "data": fingerprint_examples(stage.examples, progress, identity, read=read),
        **({} if ids is None else {"ids": {"sha256": ids.sha256()}}),
        "collate": fingerprint_collate(stage.collate, stage.data, identity),
        "link": fingerprint_link(stage.link, identity),
        "weight_decay": stage.weight_decay,
        **({} if stage.example_weights is None else {"weights": digest_of_weights(stage.example_weights)}),
        "batch_size": stage.batch_size,
        **({} if stage.precision is None else {"precision": stage.precision}),
    }


def fingerprint_model(model: nn.Module, identity: Identity | None = None) -> Json:
    """Class, number of parameters, and digests of what the model computes with.

    sha256: every parameter's and buffer's name, type and bytes, and which are trained; attributes: all else, the code
    of the classes and the hooks included.
    """
    identity = identity or Identity()
    walk = identity.walk()
    for name, tensor in chain(whole_values(model), model.named_buffers()):
        walk.word("name", name)
        walk.visit(f".{name}", tensor)
    trained = sorted(name for name, p in model.named_parameters() if p.requires_grad)
    walk.word("trained", "\n".join(trained))
    values = identity.told(walk, walk.finished())
    beside = identity.walk(known_of(model))
    beside.visit("", model)
    beside.visit("'s hooks on every module", _global_hooks())
    rest = identity.told(beside, beside.finished())
    unidentified = [*values.get("unidentified", ()), *rest.get("unidentified", ())]
    return {
        "class": type(model).__qualname__,
        "parameters": sum(sizes_of(model).values()),
        "sha256": values["sha256"],
        "attributes": rest["sha256"],
        **({"unidentified": unidentified} if unidentified else {}),
    }


def fingerprint_objective(objective: Objective, model: nn.Module, identity: Identity | None = None) -> Json:
    """The objective's name, its settings where they are plain values, and a digest of all that its loss depends on.

    model: the stage's; where the loss refers to it or to its parameters, these count by their names.
    """
    given = objective.function if isinstance(objective, Plain) else objective
    name = getattr(given, "__qualname__", type(given).__qualname__)
    held = getattr(given, "keywords", None) or getattr(given, "__dict__", {})
    plain = {key: value for key, value in sorted(held.items()) if isinstance(value, (bool, int, float, str))}
    found = (identity or Identity()).of(given, known_of(model, modules=True))
    return {"name": name, **({"settings": plain} if plain else {}), **found}


def fingerprint_examples(
    examples: Examples, progress: Progress | None = None, identity: Identity | None = None, *, read: bool = True
) -> Json:
    """Number of examples and a digest of all their contents, read once; sharded over processes.

    Where they are not to be `read`, `sha256` is "not taken", and `ends` is the digest of the first and the last few.
    """
    identity = identity or Identity()
    if read and (held := _READ.get()) is not None:
        if id(examples) not in held:
            held[id(examples)] = examples, _gathered(examples, progress, read=True)
        told = held[id(examples)][1]
    else:
        told = _gathered(examples, progress, read=read)
    whole = identity.walk()
    for mine, unidentified, libraries in told:
        for each in mine:
            whole.word("batch", each)
        whole.unidentified += [name for name in unidentified if name not in whole.unidentified]
        whole.libraries |= libraries
    found = identity.told(whole, whole.finished())
    if not read:
        found = {**found, "sha256": NOT_TAKEN, "ends": found["sha256"]}
    return {"examples": len(examples), **found}


@contextmanager
def reading_once() -> Generator[None]:
    """Within it a data set is read for its digest once, however often its fingerprint is asked for.

    For one job that takes its data to stay as they are while it is done; the next job reads them again.
    """
    token = _READ.set({})
    try:
        yield
    finally:
        _READ.reset(token)


def _gathered(examples: Examples, progress: Progress | None, *, read: bool) -> list[_Told]:
    """The digest of each batch, what could not be identified, and packages met: of every process."""
    digests, walk = list[bytes](), Identity().walk()
    what = f"fingerprint of {examples.where}" if read else f"ends of {examples.where}"
    plan = world().shard(examples.batch_indices() if read else examples.batch_indices(_ends(len(examples))))
    with (progress or Silent()).task(what, sum(map(len, plan)), "examples") as advance, world().together(what):
        for batch in examples.read(plan):
            digests.append(walk.digest(batch.content, "batch"))
            walk.forget()
            advance(len(batch))
    return world().gather((digests, walk.unidentified, walk.libraries))


def fingerprint_collate(collate: Collate | None, data: Any, identity: Identity) -> Json | None:
    """A collation's digest, the data set apart, whose method it may be; None for PyTorch's own."""
    return None if collate is None else identity.of(collate, {id(data): "the data set"})


def digest_of_weights(weights: torch.Tensor | None) -> str | None:
    """A digest of the examples' weights `[n]`; None for none."""
    return None if weights is None else digest(weights).hex()


def _ends(count: int) -> list[int]:
    return [*range(min(ENDS, count)), *range(max(ENDS, count - ENDS), count)]


def digest(content: Any) -> bytes:
    """SHA-256 of a batch: nested tensors, arrays, numbers, strings, objects and their structure."""
    return Identity().walk().digest(content, "")


def known_of(model: nn.Module, *, modules: bool = False) -> dict[int, str]:
    """The words for a model's own parameters and buffers, by their `id`; also for its modules."""
    known = {id(tensor): f"parameter {name}" for name, tensor in model.named_parameters()}
    known |= {id(tensor): f"buffer {name}" for name, tensor in model.named_buffers()}
    return known | ({id(module): f"module {name}" for name, module in model.named_modules()} if modules else {})


def fingerprint_link(link: Link | None, identity: Identity) -> Json | None:
    """A link's name, pairs and settings; of a link of the user's own also a digest of its code and all it holds."""
    if link is None:
        return None
    settings = {key: settings_of(value, identity) for key, value in link.settings.items()}
    ours = library_of(type(link).__module__) == "stagetrace"
    named: Json = {"name": type(link).__name__, "shared": dict(link.pairs)}
    made = {name: {"of": list(each.of), **identity.of(each.function)} for name, each in link.computed.items()}
    if made:
        named["computed"] = made
    return {**settings, **named, **({} if ours else {"its": identity.of(link)})}


def _global_hooks() -> tuple[Mapping[int, Any] | Any, ...]:
    """Hooks that PyTorch runs on every module, in their order."""
    held = vars(torch.nn.modules.module)
    places = (
        "_global_forward_pre_hooks",
        "_global_forward_hooks",
        "_global_backward_pre_hooks",
        "_global_backward_hooks",
    )
    return tuple(tuple(held[place].values()) for place in places if held.get(place))

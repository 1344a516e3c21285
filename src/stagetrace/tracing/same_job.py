"""Several processes must be given the same job: each computes a part of what all add up."""

import warnings
from collections.abc import Mapping, Sequence
from hashlib import blake2b
from itertools import chain as chained
from random import Random
from typing import Any, cast

import torch
from torch import nn

from stagetrace.errors import StagetraceWarning, refuse
from stagetrace.parallel import backends, world
from stagetrace.stages.chain import Chain
from stagetrace.stages.fingerprint import (
    digest_of_weights,
    fingerprint_collate,
    fingerprint_link,
    fingerprint_model,
    fingerprint_objective,
)
from stagetrace.stages.identity import Identity
from stagetrace.stages.identity.settings import settings_of
from stagetrace.stages.risk import Risk
from stagetrace.stages.shards import whole_values
from stagetrace.tracing.query import Query

__all__ = ["check_same_job"]

_UNKNOWN = "cannot be identified"


DRAWN = 64
"""Examples of each data set that are compared, beside the first, the middle and the last one."""


def check_same_job(chain: Chain, query: Query, **settings: object) -> None:
    """Refuse processes whose models, losses, data or settings differ: their parts would belong to different sums.

    Of data sets some examples are compared, the same in every process. What cannot be identified is not compared, which
    a warning says.

    settings: by the words for them.

    Raises:
        DescriptionError: names what differs, and which process has it.
    """
    if world().size == 1:
        return
    if "cpu" not in backends():
        refuse(
            f"the process group has no backend for the CPU ({backends()}); start it by "
            "torch.distributed.init_process_group('cpu:gloo,cuda:nccl')"
        )
    with world().together("comparing the processes' jobs"):
        job = _job(chain, query, settings)
    first, *others = world().gather(job)
    with world().together("comparing the processes' jobs"):
        if world().is_first:
            _compare(first, others)
            unknown = [what for what, value in first.items() if _UNKNOWN in str(value)]
            for what in unknown:
                warnings.warn(
                    f"whether the processes have the same job is not known of {what}: a part of it cannot be "
                    "identified",
                    StagetraceWarning,
                    stacklevel=4,
                )


def _compare(first: Mapping[str, Any], others: Sequence[Mapping[str, Any]]) -> None:
    for rank, other in enumerate(others, start=1):
        differ = [what for what in first if first[what] != other.get(what)]
        if differ:
            refuse(
                f"process {rank} was given another job than process 0: {differ[0]} differs; build the same chain and "
                "query in every process (load the same checkpoints, or set the same seed before weights or data are "
                "drawn)"
            )


def _job(chain: Chain, query: Query, settings: Mapping[str, object]) -> dict[str, Any]:
    identity = Identity()
    found: dict[str, Any] = {
        "the number or the names of the stages": chain.names,
        "PyTorch's version": torch.__version__,
    }
    found |= {what: _setting(value, identity) for what, value in settings.items()}
    for bound in chain:
        stage = bound.stage
        model = fingerprint_model(stage.model, identity)
        told = {
            "the value of a parameter or buffer": _digest(stage.model),
            "which parameters are trained": sorted(n for n, p in stage.model.named_parameters() if p.requires_grad),
            "the model's class, code or attributes": _known(model, "class", "attributes"),
            "the objective": _known(fingerprint_objective(stage.loss, stage.model, identity)),
            "the link": _known(fingerprint_link(stage.link, identity) or {}),
            "the collation": _known(fingerprint_collate(stage.collate, stage.data, identity) or {}),
            "the weight decay": stage.weight_decay,
            "the weights of its examples": digest_of_weights(stage.example_weights),
        }
        found |= {f"{stage.where}: {what}": value for what, value in told.items()}
        if bound.recording is None:  # one that is replayed may draw its data anew each time
            found |= _data(bound.risk)
    risks, last = query.risks(chain.last), chain.last.stage
    found["the query's reduction"] = query.reduction
    found["the query's objective"] = _known(fingerprint_objective(risks[0].objective, last.model, identity))
    found["the query's collation"] = _known(
        fingerprint_collate(query.collate or last.collate, query.data, identity) or {}
    )
    found["whether the query has a contrast"] = len(risks) > 1
    for risk in risks:
        found |= _data(risk)
    return found


def _setting(value: object, identity: Identity) -> Any:
    """A setting of one stage, or of several by name; with what it says of itself, unless that is an address."""
    if isinstance(value, Mapping):
        of = cast("Mapping[str, object]", value)
        return {name: _setting(each, identity) for name, each in of.items()}
    text = repr(value)
    return _known({"settings": settings_of(value, identity), "text": "" if " at 0x" in text else text})


def _known(told: Mapping[str, Any], *names: str) -> Any:
    """What was told of a thing, or only what goes by these names, without addresses; `_UNKNOWN` where a part is not."""
    if "unidentified" in str(told):
        return _UNKNOWN
    return {name: told[name] for name in names} if names else dict(told)


def _data(risk: Risk) -> dict[str, Any]:
    """How many examples there are, in which batches, and what some of them are."""
    examples, where = risk.examples, risk.where
    total = len(examples)
    found: dict[str, Any] = {f"{where}: the number of examples": total, f"{where}: batch_size": examples.batch_size}
    walk = Identity().walk()
    drawn = Random(total).sample(range(total), min(DRAWN, total))
    for place in sorted({0, total // 2, total - 1, *drawn}):
        for batch in examples.read([[place]]):
            digest = walk.digest(batch.content, "batch")
            found[f"{where}: example {place}"] = _UNKNOWN if walk.unidentified else digest
        if walk.unidentified:
            break
        walk.forget()
    return found


def _digest(model: nn.Module) -> bytes:
    """Of the values alone, which two copies of a model share."""
    seal = blake2b(digest_size=16)
    for name, tensor in chained(whole_values(model), model.named_buffers()):
        seal.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        if tensor.layout is torch.strided:
            seal.update(tensor.detach().to("cpu").contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return seal.digest()

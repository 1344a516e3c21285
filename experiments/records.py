"""What an experiment writes: traces and validations as plain values, means over seeds, and `OUT/result.json`."""

import math
import os
import platform
import re
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import nn

import stagetrace
from experiments.settings import Settings
from stagetrace import Scores, Trace
from stagetrace.results.files import write_text
from stagetrace.results.jsonable import json_text
from stagetrace.results.manifest import versions
from stagetrace.results.sign import SIGN, UNIT
from stagetrace.tracing.backward import solution_warnings
from stagetrace.validation import LinearDatamodelling, Validation
from stagetrace.validation.reliability import mean_over_seeds

Record = dict[str, Any]
QUANTILES = (0.01, 0.25, 0.5, 0.75, 0.99)


def over_seeds(values: Sequence[float | None]) -> Record:
    """The known values, their mean, and its 95 % interval by Student's t; the ends are None for a single value.

    Example:
        >>> over_seeds([1.0, 2.0, 3.0])["mean"]
        2.0
    """
    known = [value for value in values if value is not None]
    if not known:
        return {"n": 0, "mean": None, "low": None, "high": None, "each": []}
    found = mean_over_seeds(known)
    low, high = (None, None) if found.n < 2 else (found.low, found.high)
    return {"n": found.n, "mean": found.mean, "low": low, "high": high, "each": known}


def ratio_over_seeds(above: Sequence[float], below: Sequence[float]) -> Record:
    """The ratio of two positive figures, seed by seed: geometric mean and the 95 % t-interval of its logarithm."""
    each = [a / b for a, b in zip(above, below, strict=True)]
    logs = over_seeds([math.log(a / b) for a, b in zip(above, below, strict=True)])
    ends = {name: None if logs[name] is None else math.exp(logs[name]) for name in ("mean", "low", "high")}
    return {"n": logs["n"], **ends, "each": each}


def format_interval(found: Record, form: str = "+.2f") -> str:
    """`mean (95 %: low to high)`.

    Example:
        >>> format_interval(over_seeds([1.0, 1.0]))
        '+1.00 (95 %: +1.00 to +1.00)'
    """
    if found["low"] is None:
        return f"{found['mean']:{form}} (one seed)"
    return f"{found['mean']:{form}} (95 %: {found['low']:{form}} to {found['high']:{form}})"


def of_validation(validation: Validation) -> Record:
    """The numbers of one chain, variant and seed: by choice of examples, then by estimator."""
    choices = Record()
    for measured in validation.measured:
        groups = len(measured.removals[0]) > 1
        choices[re.sub(r", seed \d+", "", measured.choice)] = {
            "estimators": {name: agreement.record() for name, agreement in measured.agreement.items()},
            "lds": {n: LinearDatamodelling.of(p, measured.true).record() for n, p in measured.predicted.items()}
            if groups
            else None,
            "reliability": measured.reliability.record() if measured.reliability else None,
            "mean_absolute_effect": measured.true.abs().mean().item(),
        }
    rate = validation.per_minute
    return {
        "choices": choices,
        "retrainings": validation.retrainings,
        "retrainings_per_minute_and_process": rate,
    }


def summary(records: Sequence[Record]) -> Record:
    """Of one choice of removals in each seed: mean and 95 % interval over seeds, by estimator and figure."""
    reliable = [each["reliability"] for each in records if each["reliability"]]
    truth = {what: over_seeds([each[what] for each in reliable]) for what in ("reliability", "ceiling", "noise_floor")}
    first = records[0]["estimators"]
    return {
        "n": next(iter(first.values()))["n"],
        **truth,
        "estimators": {
            name: {
                figure: over_seeds([each["estimators"][name][figure] for each in records])
                for figure in ("pearson_r", "spearman_r", "slope", "without_largest")
            }
            for name in first
        },
    }


def of_trace(trace: Trace, curvature: Mapping[str, Any], solver: Mapping[str, Any]) -> Record:
    """How each stage was solved (work, true residual, status, extreme Ritz values), and what is amiss.

    The warnings are read off the finished trace: a resumed run does not warn again of what it kept.
    """
    solved, warnings = Record(), [str(notice) for notice in trace.statistics.get("notices", [])]  # pyright: ignore
    for name, solution in trace.solutions.items():
        warnings += map(str, solution_warnings(name, solution))
        spectrum = solution.spectrum
        solved[name] = {
            "curvature": repr(curvature[name]),
            "solver": str(solver[name]),
            "system": str(solution.system),
            "converged": solution.converged,
            "status": solution.status.value,
            "relative_residual": solution.relative_residual,
            "asked_for": solution.tolerance,
            "products": solution.products,
            "checks": solution.checks,
            "smallest_ritz_value": None if spectrum is None else spectrum.smallest,
            "largest_ritz_value": None if spectrum is None else spectrum.largest,
            "notes": list(solution.notes),
        }
    return {"solving": solved, "warnings": warnings}


def of_scores(scores: Scores, top: int = 0, query: int | None = None) -> Record:
    """The scores in numbers, and the ends of their ranking; positive = harmful; unit: query loss."""
    values = scores.values if query is None else scores.values[query]
    found: Record = {
        "examples": scores.n_examples,
        "smallest": values.min().item(),
        "largest": values.max().item(),
        "mean": values.mean().item(),
        "mean_absolute": values.abs().mean().item(),
        "share_harmful": (values > 0).double().mean().item(),
        "quantiles": {
            f"{q:g}": value
            for q, value in zip(
                QUANTILES, values.quantile(torch.tensor(QUANTILES, dtype=values.dtype)).tolist(), strict=True
            )
        },
    }
    for end, harmful in (("most_harmful", True), ("most_helpful", False)) if top else ():
        found[end] = [
            {"index": row.index, "score": row.score, "removal_effect": row.removal_effect}
            for row in scores.top(top, harmful=harmful, query=query)
        ]
    return found


@torch.no_grad()
def forward_seconds(model: nn.Module, pixels: torch.Tensor, batch_size: int = 256, repeats: int = 3) -> float:
    """Seconds of one forward pass over all examples, the best of some: what solving and scoring are measured in."""
    times = list[float]()
    for _ in range(repeats):
        started = time.perf_counter()
        for batch in pixels.split(batch_size):
            model(batch)
        if pixels.is_cuda:
            torch.cuda.synchronize()
        times.append(time.perf_counter() - started)
    return min(times)


def write_result(name: str, settings: Settings, fields: Record) -> Path:
    """Write `OUT/result.json` in one step: an experiment's own fields between what was asked and what it ran on.

    Raises:
        ResultsError: the file system refused.
        DescriptionError: a field that JSON cannot hold.
    """
    path = settings.out / "result.json"
    others = {package: version(package) for package in ("datasets", "numpy", "safetensors")}
    whole = {
        "experiment": name,
        "sign": SIGN,
        "unit": UNIT,
        "asked": {"seed": settings.seed, "examples": settings.examples, "dataset": settings.dataset_name},
        **fields,
        "versions": {**versions(), "stagetrace": stagetrace.__version__, **others},
        "hardware": hardware(settings.device),
    }
    write_text(path, json_text(whole, "result.json", lists_in_a_line=True))
    return path


def hardware(device: torch.device) -> Record:
    """What it ran on, in general words."""
    kind = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    return {"device": device.type, "kind": kind, "cores": os.cpu_count(), "threads": torch.get_num_threads()}

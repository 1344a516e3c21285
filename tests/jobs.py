"""Small jobs for the command line and for processes of their own, and how to run them there.

Each function below `# Jobs` is a TARGET: `stagetrace score tests/jobs.py:frozen --out DIR`. Environment variables make
the process that loads this file do more than its job, so that a test can kill it at a known place:

    STAGETRACE_TEST_PART=N      parts of N examples, so that a small job has several
    STAGETRACE_TEST_LOG=FILE    each product with a stage's curvature and each part kept becomes a line of FILE
    STAGETRACE_TEST_KILL=LINE   the process kills itself once that line has been written, e.g. "product 2 of pretrain"
"""

import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from functools import wraps
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import stagetrace
from stagetrace import Chain, Frozen, GaussNewton, Lanczos, Link, Proximal, Query, Stage
from stagetrace.objectives import Classification

ROOT = Path(__file__).parents[1]
FILE = Path(__file__)
CLASSES = 3

# What jobs are made of, float64


class Net(nn.Module):
    """`x [n, 4] -> embedding -> tanh -> head -> [n, 3]`."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.embedding, self.head = nn.Linear(4, 3), nn.Linear(3, CLASSES)
        redraw(self.double(), seed)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.embedding(x)))


def redraw(module: nn.Module, seed: int, scale: float = 0.6, keep: float = 0.0) -> None:
    """Draw a module's parameters anew, a share `keep` of the old ones added."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in module.parameters():
            p.mul_(keep).add_(scale * torch.randn(p.shape, generator=generator, dtype=p.dtype))


def after(previous: nn.Module, link: Link, seed: int) -> nn.Module:
    """A model that started from `previous` as the link says: the embedding kept or moved a little, the head new."""
    model = deepcopy(previous)
    redraw(model.get_submodule("head"), seed)
    if not link.keeps_shared:
        redraw(model.get_submodule("embedding"), seed, scale=0.1, keep=1.0)
    return model


def examples(n: int, seed: int, dtype: torch.dtype = torch.float64) -> TensorDataset:
    """Drawn inputs and labels."""
    generator = torch.Generator().manual_seed(1000 + seed)
    x = torch.randn(n, 4, generator=generator, dtype=dtype)
    return TensorDataset(x, torch.randint(CLASSES, (n,), generator=generator))


def chain(
    *links: Link, sizes: Sequence[int], names: Sequence[str] = ("pretrain", "middle", "finetune"), batch_size: int = 5
) -> Chain:
    """A chain of drawn, untrained models of the given numbers of examples; with one link "middle" is left out."""
    names = names if len(links) == len(names) - 1 else (names[0], names[-1])
    model: nn.Module = Net(0)
    stages = []
    for number, (name, n, link) in enumerate(zip(names, sizes, (None, *links), strict=True)):
        if link is not None:
            model = after(model, link, number)
        described: dict[str, Any] = {"data": examples(n, number), "link": link, "batch_size": batch_size}
        stages.append(Stage(name, model=model, objective=Classification(), weight_decay=0.01, **described))
    return Chain(*stages)


# Jobs


def frozen() -> tuple[Chain, Query, Mapping[str, Any]]:
    """Two stages; each takes several products to solve, and has several parts of 7."""
    return chain(Frozen("embedding"), sizes=(37, 23)), Query(examples(6, 9)), {"solver": Lanczos(rtol=1e-9)}


def frozen_on_gpu() -> tuple[Chain, Query, Mapping[str, Any]]:
    """As `frozen`, with both models on the GPU."""
    made, query, options = frozen()
    for stage in made.stages:
        stage.model.to("cuda")
    return made.refreshed(), query, options


def unconverged() -> tuple[Chain, Query, Mapping[str, Any]]:
    """As `frozen`, but every solve stops early and every curvature is indefinite: a warning of each."""
    return (
        chain(Frozen("embedding"), sizes=(37, 23)),
        Query(examples(6, 9)),
        {"solver": Lanczos(max_steps=3, rtol=1e-9, many="separate")},
    )


def three() -> tuple[Chain, Query, Mapping[str, Any]]:
    """Three stages, moved then kept; the middle one has fewer batches than two processes."""
    links = Proximal("embedding", alpha=0.1), Frozen("embedding")
    return chain(*links, sizes=(37, 4, 23)), Query(examples(6, 9)), {"curvature": GaussNewton()}


def moved() -> tuple[Chain, Query]:
    """As `frozen`, with the embedding trained further."""
    return chain(Proximal("embedding", alpha=0.1), sizes=(37, 23)), Query(examples(6, 9))


def unrelated() -> tuple[Chain, Query]:
    """Three stages; the last one kept nothing that the first one trained, so that some controls do not apply."""
    first, middle, last = Net(0), Net(1), Net(2)
    middle.embedding.load_state_dict(first.embedding.state_dict())
    last.head.load_state_dict(middle.head.state_dict())
    described: dict[str, Any] = {"objective": Classification(), "weight_decay": 0.01, "batch_size": 5}
    stages = (
        Stage("pretrain", model=first, data=examples(37, 0), **described),
        Stage("middle", model=middle, data=examples(23, 1), link=Frozen("embedding"), **described),
        Stage("finetune", model=last, data=examples(19, 2), link=Frozen("head"), **described),
    )
    return Chain(*stages), Query(examples(6, 9))


def single_precision() -> tuple[Chain, Query]:
    """As `frozen`, in float32."""
    exact, _, _ = frozen()
    model, data = (
        deepcopy(exact.stages[1].model).float(),
        [examples(n, seed, torch.float32) for seed, n in ((0, 37), (1, 23))],
    )
    described: dict[str, Any] = {"model": model, "objective": Classification(), "weight_decay": 0.01, "batch_size": 5}
    stages = (
        Stage("pretrain", data=data[0], **described),
        Stage("finetune", data=data[1], link=Frozen("embedding"), **described),
    )
    return Chain(*stages), Query(examples(6, 9, torch.float32))


# Other processes


def environment(**extra: str) -> dict[str, str]:
    """This process's environment for a child: the same stagetrace, the tests importable, one thread."""
    source = str(Path(stagetrace.__file__).parents[1])
    paths = os.pathsep.join([source, str(ROOT)])
    plain = {key: value for key, value in os.environ.items() if not key.startswith("STAGETRACE_TEST")}
    return {**plain, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "COLUMNS": "80", **extra}


def run(*words: str, **extra: str) -> subprocess.CompletedProcess[str]:
    """`python WORDS` with these environment variables; output and exit code, whatever it is."""
    command = [sys.executable, *words]
    return subprocess.run(
        command, env=environment(**extra), cwd=ROOT, capture_output=True, text=True, timeout=300, check=False
    )


def score(job: str, out: Path, *words: str, **extra: str) -> subprocess.CompletedProcess[str]:
    """`python -m stagetrace score tests/jobs.py:JOB --out OUT WORDS`."""
    return run("-m", "stagetrace", "score", f"{FILE}:{job}", "--out", str(out), *words, **extra)


def torchrun(processes: int, *words: str, **extra: str) -> subprocess.CompletedProcess[str]:
    """`torchrun WORDS` on this machine, on a free port."""
    alone = "--standalone", "--nproc-per-node", str(processes)
    return run("-m", "torch.distributed.run", *alone, *words, **extra)


# What a watched process does


class Killed(BaseException):
    """The process ends here."""


def watch(log: Callable[[str], object], part: int | None, patch: Callable[[Any, str, Any], object] = setattr) -> None:
    """Call `log` with a line after each product with a stage's curvature and each part kept, e.g. "part 2 of fit".

    part: examples in a part, so that a small job has several.
    """
    import stagetrace.results.parts as part_module
    from stagetrace.curvature.mean import MeanCurvature
    from stagetrace.results import folder

    if part is not None:
        patch(part_module, "PART_EXAMPLES", part)
    counts = Counter[tuple[str, str]]()

    def watched(method: Callable[..., Any], event: Callable[..., tuple[str, str]]) -> Callable[..., Any]:
        @wraps(method)
        def done(*arguments: Any) -> Any:
            result = method(*arguments)
            what, stage = event(*arguments)
            counts[what, stage] += 1
            log(f"{what} {counts[what, stage]} of {stage}")
            return result

        return done

    product = watched(MeanCurvature.apply, lambda operator, _: ("product", operator.risk.where.split("'")[1]))
    patch(MeanCurvature, "apply", product)
    patch(folder, "write_part", watched(folder.write_part, lambda _, __, stage, *___: ("part", stage)))


def _as_told(environ: Mapping[str, str]) -> None:
    """Do as the environment variables at the top of this file say."""
    path, last = environ.get("STAGETRACE_TEST_LOG"), environ.get("STAGETRACE_TEST_KILL")

    def log(line: str) -> None:
        assert path is not None
        with Path(path).open("a") as file:
            file.write(line + "\n")
        if line == last:
            os.kill(os.getpid(), signal.SIGKILL)

    if path is not None:
        watch(log, int(environ["STAGETRACE_TEST_PART"]))


_as_told(os.environ)

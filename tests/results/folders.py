"""Run folders, begun, half done and finished."""

# pyarrow and pandas have no type information.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportMissingTypeStubs=false, reportPrivateUsage=false

from collections.abc import Callable, Mapping
from pathlib import Path

from stagetrace.results import JSON, RunFolder, Scores, Trace
from stagetrace.results.parts import split

MakeTrace = Callable[..., Trace]
MakeScores = Callable[..., Scores]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def keep(run: RunFolder, trace: Trace, stage: str, parts: range = range(9)) -> None:
    """What a trace does for one stage."""
    if run.solution(stage) is None:
        run.write_solution(stage, trace.solutions[stage])
    for number, part in enumerate(split(trace[stage])):
        if number in parts and run.part(stage, number) is None:
            run.write_part(stage, number, part)


def kept(run: RunFolder, stage: str) -> list[int]:
    """The numbers of the parts that are there."""
    return [number for number in range(9) if run.part(stage, number) is not None]


def finished(path: Path, trace: Trace) -> RunFolder:
    with RunFolder.open(path, trace.description) as run:
        for stage in reversed(list(trace)):
            keep(run, trace, stage)
        run.finish(trace.statistics)
    return run


def begun(path: Path, description: Mapping[str, JSON]) -> None:
    """A run that has kept nothing yet."""
    RunFolder.open(path, description).close()


def half_done(folder: Path, trace: Trace) -> None:
    """A killed run that has kept all of "pretrain"."""
    with RunFolder.open(folder, trace.description) as run:
        keep(run, trace, "pretrain")


FILES = ("run.json", "scores/pretrain/part-00000.parquet", "adjoints/pretrain.safetensors")

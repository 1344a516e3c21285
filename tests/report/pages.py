"""Runs made by hand, for reports: pictures with the scores of each query, and texts that nobody would wish for."""

import json
from pathlib import Path

import torch

from stagetrace import Scores, Trace
from stagetrace.checks.finding import Finding, Level
from stagetrace.report import write
from stagetrace.report.attachments import write_findings
from stagetrace.report.item import Reader
from stagetrace.report.picture import png
from stagetrace.report.preview import Preview
from stagetrace.report.previews import Previews, write_previews
from stagetrace.report.sweep import Stability, write_sweep
from stagetrace.results import JSON, TokenScores
from stagetrace.solvers import Equation, Tikhonov
from stagetrace.solvers.base import Solution, Status
from stagetrace.solvers.system import Spectrum

HOSTILE = (
    "</script><script>window.stolen = 1</script>",
    '<img src=x onerror="window.stolen = 2">',
    "<!--<script src=x --><svg onload=window.stolen=3></script x=1>",
    "{{ 7 * 7 }}${7 * 7}&amp;lt;b&gt;",
    "\u202egnp.exe\u202c is not what it seems\u200b here\u2066isolate\u2069",
    "مرحبا بالعالم، هذا نص عربي مع English داخل السطر",
    "שלום עולם, טקסט בעברית (2024)",
    "数据集里的中文文本，以及日本語のテキスト",
    "नमस्ते दुनिया — ক খ গ — ሰላም ልዑል",
    "👩🏽‍🔬 and 👨‍👩‍👧‍👦 and 🏳️‍🌈 stay whole",
    "  two leading spaces,\ta tab,\n\n    an indented line after an empty one  ",
    "half a character: \ud83d, a null \x00, a bell \x07, and \u2028 a separator",
    "word " * 200_000,
    "x" * 1_000_000,
)
NAMES = ("plain", "<b>bold</b>", "עברית", "", "\u202eegnar\x1b[31m\x9b\u200b")


def solution(seed: int, status: Status = Status.CONVERGED) -> Solution:
    ritz = torch.logspace(-4, 1, 40, dtype=torch.float64)
    if status is not Status.CONVERGED:
        ritz = torch.cat([torch.tensor([-0.3, -0.01]).double(), ritz])
    return Solution(
        torch.randn(5, generator=torch.Generator().manual_seed(seed)),
        Equation(Tikhonov(0.01)),
        (3e-5 if status is Status.CONVERGED else 0.02,),
        40,
        1,
        40,
        (status,),
        1e-4,
        Spectrum(tuple(ritz.tolist())),
    )


def drawn(stage: str, n: int, seed: int, queries: int | None = None, parts: bool = False) -> Scores:
    generator = torch.Generator().manual_seed(seed)
    shape = (n,) if queries is None else (queries, n)
    shared, head = (torch.randn(shape, generator=generator, dtype=torch.float64) ** 3 for _ in range(2))
    return Scores(stage, shared + head, shared, head) if parts else Scores(stage, shared)


def described(reduction: str) -> dict[str, JSON]:
    solver: JSON = {"name": "Lanczos", "damping": 0.01, "rtol": 1e-4}
    return {"query": {"reduction": reduction}, "solver": {"pretrain": solver, "finetune": solver}}


def hostile(folder: Path) -> Path:
    """A run whose texts, labels and stage name are hostile; the query is one text."""
    n = 30
    rows = [{"text": HOSTILE[i % len(HOSTILE)], "label": NAMES[i % len(NAMES)]} for i in range(n)]
    stage = '</title><script>window.stolen = 4</script>"x'
    scores = drawn(stage, n, 0)
    trace = Trace({stage: scores, "finetune": drawn("finetune", n, 1)}, {}, described("mean"))
    trace.save(folder)
    reader = Reader.of(rows)
    items = [reader.preview(name, index) for name in (stage, "finetune") for index in range(n)]
    query = Preview(None, 0, "text", HOSTILE[0], label=NAMES[1], prediction=HOSTILE[1], loss=0.25)
    command = "stagetrace score '<script>window.stolen = 5</script>:job' --out runs/hostile"
    facts = {"query_examples": 1, "query_loss": 0.25, "command": command}
    write_previews(folder, Previews((*items, query), facts))
    return write(folder)


def pictures(folder: Path, queries: int = 4, n: int = 60) -> Path:
    """A run with a matrix, parts, a solve that stopped early, and pictures in five classes."""
    solutions = {"pretrain": solution(0, Status.MAX_STEPS), "finetune": solution(1)}
    stages = {
        "pretrain": drawn("pretrain", n, 0, queries, parts=True),
        "finetune": drawn("finetune", n // 2, 1, queries, parts=True),
    }
    coverage = {"trained": 900, "kept": 100, "constant": 24}
    statistics = {
        "coverage": {"pretrain": coverage},
        "links": {"finetune": {"alpha": 0.1}},
        "seconds": {"in all": 3.25},
    }
    Trace(stages, solutions, described("none"), statistics).save(folder)
    items = [
        Preview(name, index, "image", images=(png(blob(index)),), label=f"kind {index % 5}")
        for name, scores in stages.items()
        for index in range(scores.n_examples)
    ]
    asked = [
        Preview(None, k, "image", images=(png(blob(k)),), label="kind 0", prediction="kind 1 (62%)", loss=0.5 + 0.1 * k)
        for k in range(queries)
    ]
    write_previews(folder, Previews((*items, *asked), {"query_examples": queries, "query_loss": 0.65}))
    write_beside(folder)
    return write(folder)


def tokens(folder: Path) -> Path:
    """A run with scores of tokens: of texts that nobody would wish for, and of one of which not all were kept."""
    pieces = [("plain", " words", " here"), *((text[:40], " ", text[40:80]) for text in HOSTILE[:12])]
    index = torch.arange(len(pieces)).repeat_interleave(2)
    position = torch.tensor([1, 2]).repeat(len(pieces))
    position[-2] = -1
    values = torch.linspace(-2, 2, 2 * len(pieces))[torch.randperm(2 * len(pieces), generator=torch.manual_seed(0))]
    found = TokenScores("pretrain", len(pieces), index, position, position.clamp_min(-1), values, 30, 1e-3)
    scores = Scores("pretrain", torch.stack([found[i].total for i in range(len(pieces))]))
    Trace({"pretrain": scores}, {}, described("mean"), tokens={"pretrain": found}).save(folder)
    items = [Preview("pretrain", i, "text", "".join(words), pieces=words) for i, words in enumerate(pieces)]
    query = Preview(None, 0, "text", "asked", loss=1.5)
    write_previews(folder, Previews((*items, query), {"query_examples": 1, "query_loss": 1.5}))
    return write(folder)


LONG = "a-stage-with-a-very-long-name-" * 6
ALIKE = 23


def alike(folder: Path) -> Path:
    """A run in which the 23 most harmful examples look the same, with long names and numbers of many characters."""
    n = 40
    scores = torch.cat([torch.linspace(2, 1.9, ALIKE), torch.linspace(-1, 1, n - ALIKE)]).double()
    Trace({LONG: Scores(LONG, scores), "finetune": Scores("finetune", -1.5e-123 * scores)}, {}, described("mean")).save(
        folder
    )
    texts = ["the same tweet, again"] * ALIKE + [f"tweet {index}" for index in range(ALIKE, n)]
    items = [
        Preview(stage, index, "text", text, label="news")
        for stage in (LONG, "finetune")
        for index, text in enumerate(texts)
    ]
    cut = [Preview(LONG, index, "text", "long", cut=9, label="news") for index in (30, 31)]  # may differ further on
    kept = {(item.stage, item.index): item for item in (*items, *cut)}
    write_previews(folder, Previews(tuple(kept.values()), {"query_examples": 1_234_567, "query_loss": 1.5e-9}))
    return write(folder)


def write_beside(folder: Path) -> None:
    """All that may lie beside a run: preflight findings, a damping sweep, a validation and its plots."""
    far = "the gradient norm is 0.4: the stage is not at a minimum"
    write_findings(
        folder,
        [
            Finding("pretrain", "coverage", Level.OK, "900 of 1,024 parameters trained here"),
            Finding("finetune", "stationarity", Level.WARNING, far),
        ],
    )
    write_sweep(
        folder,
        [Stability(stage, factor, 0.75, 0.5, 6) for factor in (0.1, 10.0) for stage in ("pretrain", "finetune")],
    )
    found = {"pearson_r": 0.912, "pearson_interval": [0.8, 0.97], "spearman_r": 0.885, "slope": 1.204}
    unknown = {"pearson_r": None, "pearson_interval": [None, None], "spearman_r": None, "slope": None}
    choice = {"choice": "12 largest", "n": 12, "runs": 3}
    agreement = {"multi-stage influence": found, "random": unknown}
    estimators = {name: {"unit": "query loss"} for name in agreement}
    record = {"estimators": estimators, "choices": [{**choice, "agreement": agreement}]}
    (folder / "validate.json").write_text(json.dumps(record))
    for name in ("agreement.png", "estimators.png"):
        (folder / name).write_bytes(png(blob(7)))


def blob(seed: int, size: int = 28) -> torch.Tensor:
    """A blot that differs from seed to seed, `[3, size, size]` from 0 to 1."""
    generator = torch.Generator().manual_seed(seed)
    x, y, wide = torch.rand(3, generator=generator)
    grid = torch.linspace(0, 1, size)
    ink = torch.exp(-((grid[None] - x) ** 2 + (grid[:, None] - y) ** 2) / (0.02 + 0.1 * wide))
    return ink * torch.rand(3, 1, 1, generator=generator)

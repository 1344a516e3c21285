"""`recording`: what it costs to record a training, of a BERT of one layer and of a GPT-2 of some 10^5 parameters.

The share is what recording took of all that the training took, as the recording itself measured both. The quotient is a
whole recorded training beside one that is not recorded, in turn: on a busy machine it says less.
"""

import json
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from torch.utils.data import DataLoader

from benchmarks.report import Report, Row
from benchmarks.timing import in_turn
from stagetrace import Recording

STEPS, BATCH, LENGTH, WORDS = 120, 16, 24, 600
EVERY: tuple[int | str, ...] = ("auto", 1)
TARGET = 0.05


def run(report: Report) -> None:
    """Each model, with a state every root of the steps and with one every step."""
    steps = 20 if report.asked.quick else STEPS
    table = list[Row]()
    for name, make in (("BERT, 1 layer", _bert), ("GPT-2, 2 layers", _gpt2)):
        with tempfile.TemporaryDirectory() as place:
            folders = {every: Path(place) / str(every) for every in EVERY}
            works = {"alone": partial(_train, make, steps, None, "auto", report.asked.seed)}
            for every, folder in folders.items():
                works[str(every)] = partial(_train, make, steps, folder, every, report.asked.seed)
            times = in_turn(works, report.asked.repetitions(5))
            for every, folder in folders.items():
                shares, sizes = zip(*map(_share, sorted(folder.iterdir())), strict=True)
                table.append(
                    {
                        "model": name,
                        "parameters": sum(p.numel() for p in make().parameters()),
                        "a state every": every,
                        "ms a step": times["alone"].median / steps * 1000,
                        "share": sorted(shares)[len(shares) // 2],
                        "beside a training alone": times[str(every)].over(times["alone"]),
                        "kB a step": sizes[0] / steps / 1000,
                    }
                )
    report.table("What recording takes of a training", table, "recording")
    for row in table:
        if row["a state every"] == "auto":
            report.target(f"share of recording, {row['model']}", row["share"], TARGET)


def _bert() -> Any:
    sizes: dict[str, Any] = {
        "hidden_size": 48,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "intermediate_size": 96,
    }
    return transformers.BertForMaskedLM(transformers.BertConfig(vocab_size=WORDS, max_position_embeddings=32, **sizes))


def _gpt2() -> Any:
    sizes: dict[str, Any] = {
        "n_embd": 64,
        "n_layer": 2,
        "n_head": 4,
        "n_positions": 32,
        "bos_token_id": 0,
        "eos_token_id": 0,
    }
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(vocab_size=WORDS, **sizes))


def _train(make: Any, steps: int, folder: Path | None, every: Any, seed: int) -> None:
    torch.manual_seed(seed)
    model, tokens = make().train(), torch.randint(0, WORDS, (steps * BATCH, LENGTH))
    rows: Any = [{"input_ids": row, "labels": row} for row in tokens]
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    loader = DataLoader(rows, BATCH, shuffle=True)

    def loop(batches: Any) -> None:
        for batch in batches:
            optimizer.zero_grad()
            model(**batch).loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()

    if folder is None:
        return loop(loader)
    taken = len(list(folder.iterdir())) if folder.exists() else 0
    with Recording(folder / str(taken), model, optimizer, every=every) as recording:
        loop(recording.loader(loader))


def _share(folder: Path) -> tuple[float, int]:
    """What recording took of the training, and how many bytes it left."""
    seconds = json.loads((folder / "recording.json").read_text())["seconds"]
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    return seconds["recording"] / seconds["training"], size

"""`large-recording`: a sentence encoder of 22.7 million parameters, 500 steps recorded and differentiated.

The model has the sizes of MiniLM (6 layers, 384 wide, 30,522 tokens) and a head for two classes. It is trained as users
train it: AdamW with warm-up and linear decay, gradients clipped at 1, dropout, batches of 16 tweets of up to 32 tokens.
With `--weights DIR` (a folder of `save_pretrained`, with its tokenizer) it starts from these; else from random weights,
and a word's number is a hash of it.

Three processes, one after the other, so that each has a peak of its own: the training, the derivative of the mean loss
of some test tweets through all its steps, and a check that shares no code with it: the last steps are run again by a
plain loop from the state kept before them, with the losses of a tenth of the examples a little heavier and lighter.

FOLDER/recording, FOLDER/*.json     `--checkpoints FOLDER`: what was done is not done again
"""

import json
import os
import subprocess
import sys
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from benchmarks.memory import peak
from benchmarks.report import Report, Row
from benchmarks.setting import Asked
from experiments.texts import read_texts
from stagetrace import Chain, Query, Recording, Stage, Unrolled, trace
from stagetrace.errors import refuse
from stagetrace.progress import Silent
from stagetrace.recording import Recorded
from stagetrace.recording.content import read
from stagetrace.replay.backward import Reverse

TWEETS = "gop_debate"
WORDS, WIDTH, LAYERS, HEADS, LENGTH = 30_522, 384, 6, 12, 32
STEPS, BATCH, RATE, WARMUP, CLIP, EVERY = 500, 16, 5e-5, 50, 1.0, 14
BUDGET = 4 * 2**30
"""Bytes for the states of a block."""
QUERIES, LAST, MOVE = 64, 30, 0.2
"""Test tweets asked about; how many steps are run again; by how much the losses are weighed more and less."""
GROUP = 10
"""One in so many examples is weighed otherwise."""
LIMIT = 8.0


def run(report: Report) -> None:
    """Train, differentiate, check; each in a process of its own."""
    asked = report.asked
    if asked.checkpoints is None:
        refuse("large-recording: give --checkpoints FOLDER, where the recording is kept (about 10 GB)")
    asked.checkpoints.mkdir(parents=True, exist_ok=True)
    found = {phase: _apart(phase, asked) for phase in ("trained", "differentiated", "checked")}
    training = found["trained"]
    rows: list[Row] = [
        {
            "what": phase,
            "s": each["seconds"],
            "processor s": each["processor"],
            "trainings": each["processor"] / training["processor"],
            "peak GiB": each["peak"] / 2**30,
        }
        for phase, each in found.items()
    ]
    report.table("22.7 million parameters, 500 steps", rows, "phases")
    said = found["checked"]
    report.table("Against training again", [{k: v for k, v in said.items() if k in said["columns"]}], "check")
    report.fields["recording"] = {**training, **found["differentiated"]}
    for phase, each in found.items():
        report.target(f"peak GiB, {phase}", each["peak"] / 2**30, LIMIT)
    report.target("share of recording", training["share"], 0.05)
    report.target("derivative against training again, relative error", said["relative error"], 0.02)


def _apart(phase: str, asked: Asked) -> dict[str, Any]:
    assert asked.checkpoints is not None
    file = asked.checkpoints / f"{phase}.json"
    if not file.exists():
        given = {"data": str(asked.data), "folder": str(asked.checkpoints), "weights": str(asked.weights or "")}
        given["steps"] = str(20 if asked.quick else STEPS)
        command = [sys.executable, "-m", "benchmarks.large_recording", phase, json.dumps(given)]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=os.environ)
        file.write_text(done.stdout.splitlines()[-1] + "\n")
    return json.loads(file.read_text())


def losses(model: nn.Module, batch: Any) -> Tensor:
    """`[batch]`, of two classes."""
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    return F.cross_entropy(logits, batch["labels"], reduction="none")


def _rows(given: dict[str, str], split: str, count: int) -> list[dict[str, Any]]:
    texts = read_texts(Path(given["data"]) / TWEETS, split).drawn(count, 0)
    number = _numbers(given["weights"])
    made = list[dict[str, Any]]()
    for text, label in zip(texts.texts, texts.labels or (), strict=True):
        ids = number(text)[:LENGTH]
        mask = [1] * len(ids) + [0] * (LENGTH - len(ids))
        padded = torch.tensor(ids + [0] * (LENGTH - len(ids)))
        made.append({"input_ids": padded, "attention_mask": torch.tensor(mask), "labels": label})
    return made


def _numbers(weights: str) -> Callable[[str], list[int]]:
    """A text's tokens as numbers."""
    if weights:
        tokenizer = transformers.AutoTokenizer.from_pretrained(weights)
        return lambda text: tokenizer(text, truncation=True, max_length=LENGTH)["input_ids"]
    return lambda text: [101, *(1000 + zlib.crc32(word.encode()) % (WORDS - 1000) for word in text.lower().split())]


def _model(given: dict[str, str]) -> nn.Module:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"hidden_size": WIDTH, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS}
    config = transformers.BertConfig(vocab_size=WORDS, intermediate_size=4 * WIDTH, **sizes)  # of two classes
    model = transformers.BertForSequenceClassification(config)
    if given["weights"]:
        own = transformers.AutoModel.from_pretrained(given["weights"]).state_dict()
        model.bert.load_state_dict(own, strict=False)
    return model


def train(given: dict[str, str]) -> dict[str, Any]:
    """The loop of any user, in two more lines."""
    steps, folder = int(given["steps"]), Path(given["folder"]) / "recording"
    rows, model = _rows(given, "train", steps * BATCH), _model(given).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.01)
    schedule = transformers.get_linear_schedule_with_warmup(optimizer, min(WARMUP, steps // 2), steps)
    loader: DataLoader[Any] = DataLoader(rows, BATCH, shuffle=True)  # type: ignore[arg-type]
    first = list[float]()
    with Recording(folder, model, optimizer, every=min(EVERY, steps // 2)) as recording:
        for batch in recording.loader(loader):
            optimizer.zero_grad()
            loss = losses(model, batch).mean()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), CLIP)
            optimizer.step()
            schedule.step()
            first.append(loss.item())
            print(f"step {len(first)} {first[-1]:.4f} {time.process_time():.1f} s", file=sys.stderr)
    seconds = json.loads((folder / "recording.json").read_text())["seconds"]
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "share": seconds["recording"] / seconds["training"],
        "writer's share": seconds["writer"] / seconds["training"],
        "GB on disk": size / 1e9,
        "mean loss of the first and last 50 steps": [sum(part) / len(part) for part in (first[:50], first[-50:])],
    }


def _chain(given: dict[str, str]) -> tuple[Chain, list[Any]]:
    recorded = Recorded.load(Path(given["folder"]) / "recording")
    model, end = _model(given), recorded.state(recorded.steps)
    model.load_state_dict({**end.values, **end.buffers}, strict=False)
    rows = _rows(given, "train", int(given["steps"]) * BATCH)
    link = Unrolled(recording=recorded, memory=BUDGET)
    stage = Stage("finetune", model=model.eval(), objective=losses, data=rows, link=link, batch_size=32)
    return Chain(stage), _rows(given, "test", QUERIES)


def differentiate(given: dict[str, str]) -> dict[str, Any]:
    """What a user calls."""
    chain, tests = _chain(given)
    result = trace(chain, Query(tests), out=Path(given["folder"]) / "run", progress=True)
    solution, values = result.solutions["finetune"], result["finetune"].values
    return {
        "replay agrees to": solution.relative_residual,
        "score, largest and median": [float(values.abs().max()), float(values.abs().median())],
    }


def check(given: dict[str, str]) -> dict[str, Any]:
    """The derivative through the last steps by a group's weight, and central differences of these steps run again."""
    chain, tests = _chain(given)
    bound = chain["finetune"]
    recorded: Recorded = bound.recording
    blocks = [block for block in recorded.blocks if block.start >= recorded.steps - min(LAST, recorded.steps)]
    query = torch.utils.data.default_collate(tests)
    reverse = Reverse(bound, recorded, Query(tests).gradient(bound, Silent()), BUDGET)
    with torch.random.fork_rng():
        for block in reversed(blocks):
            reverse.block(block)
    predicted = float(reverse.result().weights[::GROUP].sum())
    del reverse
    ends = [_again(given, recorded, blocks, query, 1 + move) for move in (MOVE, 0.0, -MOVE)]
    measured = (ends[0] - ends[2]) / (2 * MOVE)
    found = {
        "steps": sum(map(len, blocks)),
        "weights moved by": MOVE,
        "query loss": ends[1],
        "by training again": measured,
        "by the derivative": predicted,
        "relative error": abs(predicted / measured - 1),
    }
    return {**found, "columns": list(found)}


def _again(given: dict[str, str], recorded: Recorded, blocks: list[range], query: Any, weight: float) -> float:
    """The query loss after the last steps, run by PyTorch alone, with a group's losses times a weight."""
    model, start = _model(given).train(), recorded.state(blocks[0].start)
    model.load_state_dict({**start.values, **start.buffers}, strict=False)
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.01)
    for name, parameter in model.named_parameters():
        optimizer.state[parameter] = {slot: value.clone() for slot, value in start.slots[name].items()}
    for block in blocks:
        for step in recorded.read(block):
            (micro,), (group,) = step.micros, step.groups
            optimizer.param_groups[0]["lr"] = group["lr"]
            weights = torch.tensor([weight if index % GROUP == 0 else 1.0 for index in micro.ids])
            torch.set_rng_state(micro.generators["cpu"])
            optimizer.zero_grad()
            (losses(model, read(*micro.content)) * weights).mean().backward()  # type: ignore[misc]
            nn.utils.clip_grad_norm_(model.parameters(), CLIP)
            optimizer.step()
    with torch.no_grad():
        return float(losses(model.eval(), query).double().mean())


PHASES = {"trained": train, "differentiated": differentiate, "checked": check}

if __name__ == "__main__":
    transformers.logging.set_verbosity_error()
    started = time.perf_counter()
    result = PHASES[sys.argv[1]](json.loads(sys.argv[2]))
    spent = {"seconds": time.perf_counter() - started, "processor": time.process_time(), "peak": peak()}
    print(json.dumps({**result, **spent, "threads": torch.get_num_threads()}))

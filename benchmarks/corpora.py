"""`corpora`: a million short rows read from jsonl and from Parquet shards, and scored: seconds, peak memory, reads.

The rows are made here: 6 to 12 words drawn from 200 and an id each, in shards of 100,000, so that nothing but the file
system holds them. A GPT-2 of one layer is traced over them with a folder to keep the run in, as `stagetrace score`
does: every row is read once to be identified and once to be scored, some thousands for the checks and the curvature.

The work, counted: what grows with the rows are the scores, 8 bytes each in the parts and again where they are joined,
the ids (their text and 8 bytes), and where a line begins (8 bytes, jsonl). Each number comes from a process of its own.
Reads of a row are counted in each task that goes over all rows, and the most of any row is given. The file is written
after each number.
"""

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from benchmarks.memory import peak
from benchmarks.report import Report, Row
from stagetrace.progress import Silent

FULL, SHARD = 1_000_000, 100_000
KINDS = ("jsonl", "parquet")
WORDS = [f"w{number:03d}" for number in range(200)]
SECONDS, READS, GROWTH = 300.0, 1.0, 200.0
"""What was promised: seconds of the processor for a million rows, reads of a row in a task, MB from 100,000 rows on."""


def run(report: Report) -> None:
    """Both kinds of files, a tenth of the rows and all of them."""
    full = 4000 if report.asked.quick else FULL
    with tempfile.TemporaryDirectory() as folder:
        place, table = Path(folder), list[Row]()
        write(place, full, report.asked.seed)
        for kind in KINDS:
            for rows in (full // 10, full):
                table.append({"files": kind, "rows": rows, **_apart(place, kind, rows)})
                report.say(f"{kind}, {rows:,} rows: {table[-1]['processor s']:.0f} s of the processor")
                report.fields["corpora"] = list(table)
                if report.asked.out is not None:
                    report.write(report.asked.out)
    report.table("Short rows from files, traced and kept; each line a process of its own", table, "corpora")
    for kind in KINDS:
        few, many = (row for row in table if row["files"] == kind)
        report.target(f"{kind}: seconds of the processor for {many['rows']:,} rows", many["processor s"], SECONDS)
        report.target(f"{kind}: most reads of a row in one task", many["most reads of a row"], READS)
        report.target(f"{kind}: MB that the peak grows, ten times the rows", many["peak MB"] - few["peak MB"], GROWTH)


def write(folder: Path, rows: int, seed: int) -> None:
    """The same rows as jsonl and as Parquet, in shards."""
    drawn = np.random.default_rng(seed)
    for number, start in enumerate(range(0, rows, SHARD)):
        some = list[dict[str, str]]()
        for index in range(start, min(start + SHARD, rows)):
            words = drawn.integers(0, len(WORDS), drawn.integers(6, 13))
            some.append({"id": f"doc-{index:07d}", "text": " ".join(WORDS[word] for word in words)})
        with (folder / f"{number:03d}.jsonl").open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(row) + "\n" for row in some)
        pq.write_table(pa.Table.from_pylist(some), folder / f"{number:03d}.parquet", row_group_size=20_000)


def _apart(folder: Path, kind: str, rows: int) -> Row:
    """Trace in a fresh process with as many threads as this one."""
    command = [sys.executable, "-m", "benchmarks.corpora", str(folder), kind, str(rows), str(torch.get_num_threads())]
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=os.environ)
    return json.loads(done.stdout.splitlines()[-1])


@final
class Counted:
    """The first `rows` rows of a corpus, counting how often each is asked for since the counts were last taken."""

    def __init__(self, data: Any, rows: int) -> None:
        self._data, self._rows = data, rows
        self.counts = np.zeros(rows, dtype=np.uint8)
        self.column_names = data.column_names

    def __len__(self) -> int:
        return self._rows

    def __getitem__(self, index: int) -> Any:
        self.counts[index] += 1
        return self._data[index]

    def column(self, name: str) -> Any:
        return self._data.column(name)[: self._rows]


@final
class Phases:
    """A progress that says of each task how often rows were read in it, and how long it took."""

    def __init__(self, data: Counted) -> None:
        self._data, self._silent = data, Silent()
        self.tasks: dict[str, dict[str, float]] = {}

    @contextmanager
    def task(self, what: str, total: int | None, unit: str) -> Generator[Any]:
        before, started = self._data.counts.copy(), time.process_time()
        with self._silent.task(what, total, unit) as advance:
            yield advance
        reads = self._data.counts - before
        told = {"seconds": time.process_time() - started, "rows": int((reads > 0).sum()), "most": int(reads.max())}
        self.tasks[what] = told


def _trace(folder: Path, kind: str, rows: int, threads: int) -> Row:
    """What the fresh process does."""
    torch.set_num_threads(threads)
    warnings.simplefilter("ignore")
    from stagetrace import Chain, hf, trace
    from stagetrace.corpora import Jsonl, ParquetShards

    model, tokenizer = _language_model()
    started, before = time.process_time(), peak()
    reader = {"jsonl": Jsonl, "parquet": ParquetShards}[kind]
    shards = sorted(folder.glob(f"*.{kind}"))[: -(-rows // SHARD)]
    data = Counted(reader(shards), rows)
    opened = time.process_time() - started
    stage = hf.stage("pretrain", model, data, tokenizer=tokenizer, weight_decay=0.01, batch_size=256)
    phases = Phases(data)
    with tempfile.TemporaryDirectory() as out:
        by_clock = time.perf_counter()
        query = hf.query([data[index] for index in range(4)], stage=stage)
        data.counts[:] = 0
        result = trace(Chain(stage), query, out=Path(out) / "run", progress=phases)
        by_clock = time.perf_counter() - by_clock
    whole = {what: told for what, told in phases.tasks.items() if told["rows"] == rows}
    ids = result["pretrain"].ids
    assert ids is not None
    assert ids[rows - 1] == f"doc-{rows - 1:07d}"
    scoring = next(told for what, told in whole.items() if what.startswith("scoring"))
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return {
        "processor s": time.process_time() - started + used.ru_utime + used.ru_stime,
        "by the clock s": by_clock,
        "opening s": opened,
        "fingerprint s": next(told["seconds"] for what, told in whole.items() if what.startswith("fingerprint")),
        "scoring s": scoring["seconds"],
        "tasks over all rows": len(whole),
        "most reads of a row": max(told["most"] for told in whole.values()),
        "peak MB": peak() / 1e6,
        "grown by MB": (peak() - before) / 1e6,
    }


def _language_model() -> tuple[Any, Any]:
    """A GPT-2 of one layer that has seen nothing, and a tokenizer of the words."""
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers

    torch.manual_seed(0)
    inner = Tokenizer(models.WordLevel({word: place for place, word in enumerate(["[PAD]", "[UNK]", *WORDS])}, "[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    names = ["input_ids", "attention_mask"]
    tokenizer: Any = transformers.PreTrainedTokenizerFast(
        tokenizer_object=inner, unk_token="[UNK]", pad_token="[PAD]", model_input_names=names
    )
    config = transformers.GPT2Config(
        vocab_size=len(WORDS) + 2, n_positions=16, n_embd=16, n_layer=1, n_head=2, pad_token_id=0
    )
    return transformers.GPT2LMHeadModel(config).eval(), tokenizer


if __name__ == "__main__":
    print(json.dumps(_trace(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))))

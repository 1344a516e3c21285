"""`index-words`: what the library's own index finds on the language model of `index-texts`.

The same model, sequences and queries, and the adjoints of EK-FAC; the store that `store="auto"` chooses. Recall is the
one that the build measures of itself, from what is written to the disk, bytes and all: the top 100 at either end among
the sequences that the store was not fitted on, mean over queries and both ends, against the exact scores of the same
pass. The 200 that are rescored first are the store's own top 100 of either end; a tenth is of all sequences.
"""

import tempfile
import time
from pathlib import Path

import torch

from benchmarks.index_texts import AT_ONCE, DATASET, DRAWN, FITTED, QUERIES, SEQUENCES, STEPS, tokens, trained
from benchmarks.report import Report, Row
from stagetrace import EKFAC, Chain, Direct, Query, Shift, Stage
from stagetrace.index import build
from stagetrace.index.lookup import lookup
from stagetrace.objectives import NextToken


def run(report: Report) -> None:
    """Train, build, and read off."""
    asked, quick = report.asked, report.asked.quick
    train, validation = tokens(asked.data / DATASET)
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(asked.seed))
    examples = train[order[: 64 if quick else SEQUENCES]]
    model = trained(examples, 5 if quick else STEPS, asked.seed)
    rows = [{"input_ids": each} for each in examples]
    chain = Chain(Stage("language", model=model, objective=NextToken(), data=rows, batch_size=AT_ONCE))
    query = Query([{"input_ids": each} for each in validation[:QUERIES]], reduction="none", batch_size=4)
    with tempfile.TemporaryDirectory() as folder:
        started = time.process_time()
        index = build(
            chain,
            query,
            Path(folder) / "index",
            drawn=16 if quick else DRAWN,
            queries=QUERIES,
            curvature=EKFAC(16 if quick else FITTED, cache=Path(folder) / "fit"),
            solver=Direct("auto", Shift),
        )
        seconds, held = time.process_time() - started, index.stages["language"]
        scores = index.stores["language"].scorer(torch.randn(held.parameters, 1))
        started = time.process_time()
        lookup(index.folder, "language", held, scores, 2)
        looked = time.process_time() - started
    recall = held.recall
    assert recall is not None
    row: Row = {
        "sequences": held.n_examples,
        "parameters": held.parameters,
        "store": held.store,
        "bytes an example, at most": held.bytes_each,
        "on average": held.bytes_mean,
        "words, at most": held.words,
        "coordinates": held.numbers,
        "build, processor s": seconds,
        "looking up, processor s": looked,
    }
    report.table("What is kept and what it takes", [row], "words")
    shares = {str(number): share for number, share in zip(recall.rescored, recall.honest, strict=True)}
    report.table("Recall of the top 100 by examples rescored, half from either end", [shares], "words_recall")
    report.target("bytes an example, at most", held.bytes_each, 1000)
    report.target("misses after rescoring a tenth, half from either end", 1 - recall.honest[-1], 0.1)

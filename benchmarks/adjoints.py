"""`adjoints`: what scoring a transformer costs for several adjoints, by forward mode and by each example's gradient.

The model has random weights and reads random words: what is looked at are seconds of the processor, which depend on
neither.
"""

import time
from functools import partial

import torch
from transformers import GPT2Config, GPT2LMHeadModel

from benchmarks.report import Report, Row
from benchmarks.setting import batch_of, parameters
from benchmarks.timing import in_turn
from stagetrace import Stage
from stagetrace.objectives import NextToken
from stagetrace.stages.bound import BoundStage
from stagetrace.tracing.contract import Way, choose, contraction

SEQUENCES, LENGTH, WORDS = 4, 64, 4000
ADJOINTS = (1, 2, 3, 4, 10)
WAYS: tuple[Way, ...] = ("forward mode", "layer by layer", "one example at a time")
TARGET = 1.1
"""How many times the faster way's seconds the chosen one may take."""


def run(report: Report) -> None:
    """Both ways for more and more adjoints, and which one the library takes."""
    torch.manual_seed(report.asked.seed)
    settings = GPT2Config(
        vocab_size=WORDS, n_positions=LENGTH, n_embd=192, n_layer=3, n_head=4, bos_token_id=0, eos_token_id=0
    )
    model = GPT2LMHeadModel(settings).eval()
    ids = torch.randint(WORDS, (SEQUENCES, LENGTH))
    data = [{"input_ids": row, "attention_mask": torch.ones_like(row)} for row in ids]
    risk = BoundStage.of(Stage("only", model=model, objective=NextToken(), data=data), None).risk
    batch = batch_of(risk, list(range(SEQUENCES)))
    table, worst = list[Row](), 1.0
    for k in ADJOINTS:
        columns = torch.randn(risk.trained.size, k)
        works = {way: partial(contraction(way, risk, columns), batch) for way in WAYS}
        times = in_turn(works, report.asked.repetitions(5), clock=time.process_time)
        seconds = {name: each.least for name, each in times.items()}
        way, why, _ = choose(risk, batch, k)
        worst = max(worst, seconds[way] / min(seconds.values()))
        row = {f"{name}, s": each for name, each in seconds.items()}
        table.append({"adjoints": k, **row, "chosen": way, "why": why})
    size = f"{parameters(model):,} parameters, {SEQUENCES} sequences of {LENGTH} words"
    report.table(f"Adjoints on a GPT-2 of {size}", table, "adjoints")
    report.target("several adjoints on a transformer: seconds of the way chosen over the faster one's", worst, TARGET)

"""`token-masks`: does taking out single tokens move a query more than taking out whole documents with as many tokens?

A small GPT-2 on sequences of WikiText-2, a new draw of sequences, weights and batches for each of five seeds; the query
is the mean loss of validation sequences. Scores of all tokens come from one trace. Then the training goes on from the
trained model, in the same batches each time, without

    tokens       the 1 % of all predicted tokens with the largest scores of one sign: their terms leave the loss
    documents    the 1 % of all sequences with the largest scores of that sign, which hold as many tokens
    at random    as many tokens, drawn

and the query loss is compared with that after the same steps on everything. Both ends are measured: without harmful
ones the loss should fall, without helpful ones rise. All sequences are of one length, so that tokens weigh the same.
"""

import math
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any, final

import torch
from torch import Tensor

from benchmarks.report import Report, Row
from experiments.texts import read_texts
from stagetrace import Chain, GaussNewton, Lanczos, Query, Shift, Stage, trace
from stagetrace.objectives import NextToken
from stagetrace.results import TokenScores
from stagetrace.validation import Adam, Steps
from stagetrace.validation.removals import Removal
from stagetrace.validation.retrain import Retraining
from stagetrace.validation.token_masks import TokenNumbers

DATASET, WORDS, LENGTH, WIDTH, LAYERS = "wikitext2", 500, 24, 16, 1
SEQUENCES, QUERIES, SHARE = 400, 30, 0.01
STEPS, BATCH, RATE = 200, 50, 5e-3
AGAIN = Steps(Adam(lr=1e-3), steps=60, batch_size=BATCH)
SEEDS = 5
SOLVER = Lanczos(0.01, 1e-2, filter=Shift)
T_975 = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776}
"""The quantile of Student's t at 97.5 % by the number of seeds."""


def run(report: Report) -> None:
    """Each seed on its own, then means and intervals over seeds."""
    asked, started = report.asked, time.process_time()
    train, validation = sequences(report)
    seeds = range(asked.seed, asked.seed + (2 if asked.quick else SEEDS))
    found = [Measured.of(train, validation, seed, quick=asked.quick) for seed in seeds]
    rows = [row for each in found for row in each.rows()]
    report.fields |= {"sequences": SEQUENCES, "tokens a sequence": LENGTH - 1, "tokens taken out": found[0].tokens}
    report.table("Change of the query loss (nats; - falls) without each, by seed", rows, "seeds")
    ends = [_compared(end, [each.effects[end] for each in found]) for end in ("harmful", "helpful")]
    report.table("Moved as predicted, mean over seeds, and tokens less documents", ends, "ends")
    report.fields["processor s"] = time.process_time() - started
    for end in ends:
        report.target(f"{end['end']}: documents less tokens, upper end of the interval", -end["at least"], 0.0)


@final
@dataclass(frozen=True)
class Measured:
    """One seed. effects: by the end, what each choice did to the query loss; predicted: what was foreseen of it."""

    seed: int
    loss: float
    tokens: int
    effects: dict[str, dict[str, float]]
    predicted: dict[str, dict[str, float]]

    @staticmethod
    def of(train: Tensor, validation: Tensor, seed: int, *, quick: bool) -> "Measured":
        """Train, trace, and train on without each choice."""
        generator = torch.Generator().manual_seed(seed)
        examples = train[torch.randperm(len(train), generator=generator)[: 60 if quick else SEQUENCES]]
        asked = validation[torch.randperm(len(validation), generator=generator)[:QUERIES]]
        model = trained(examples, 10 if quick else STEPS, seed)
        rows, tests = ([{"input_ids": each} for each in some] for some in (examples, asked))
        stage = Stage("language", model=model, objective=NextToken(), data=rows, batch_size=100)
        chain, query = Chain(stage), Query(tests)
        result = trace(chain, query, curvature=GaussNewton(), solver=SOLVER, tokens=examples.numel())
        scores, tokens = result["language"], result.tokens["language"]
        numbers = TokenNumbers.of(chain["language"])
        documents = max(1, round(SHARE * len(rows)))
        count = documents * (LENGTH - 1)
        by_token = Retraining(chain, query, "language", {"language": AGAIN}, numbers)
        by_document = Retraining(chain, query, "language", {"language": AGAIN})
        control = float(by_document.losses([()], 1.0, seed)[0])
        drawn = tuple(torch.randperm(len(numbers), generator=generator)[:count].tolist())
        at_random = float(by_token.losses([drawn], 1.0, seed)[0]) - control
        effects, predicted = dict[str, dict[str, float]](), dict[str, dict[str, float]]()
        for end in ("harmful", "helpful"):
            some = _ends(tokens, count, harmful=end == "harmful")
            whole = tuple(scores.top(documents, harmful=end == "harmful").indices)
            effects[end] = {
                "tokens": float(by_token.losses([some], 1.0, seed)[0]) - control,
                "documents": float(by_document.losses([whole], 1.0, seed)[0]) - control,
                "at random": at_random,
            }
            predicted[end] = {
                "tokens": -float(tokens.values[list(some)].double().sum()) / len(rows),
                "documents": float(scores.removal_effect[list(whole)].sum()),
            }
        return Measured(seed, control, count, effects, predicted)

    def rows(self) -> list[Row]:
        """A row an end."""
        return [
            {"seed": self.seed, "end": end, "query loss": self.loss}
            | {f"{what} out": effect for what, effect in effects.items()}
            | {f"{what}, predicted": effect for what, effect in self.predicted[end].items()}
            for end, effects in self.effects.items()
        ]


def _ends(tokens: TokenScores, count: int, *, harmful: bool) -> Removal:
    """The numbers of the tokens with the largest scores of one sign; all tokens were kept, in the order of numbers."""
    order = tokens.values.argsort(descending=harmful, stable=True)
    return tuple(sorted(order[:count].tolist()))


def _compared(end: str, effects: Sequence[dict[str, float]]) -> Row:
    """How far each choice moved the query as predicted, and by how much more the tokens did, with a 95 % interval."""
    sign = -1 if end == "harmful" else 1
    moved = {what: [sign * each[what] for each in effects] for what in effects[0]}
    more = [ours - theirs for ours, theirs in zip(moved["tokens"], moved["documents"], strict=True)]
    half = T_975[len(more)] * stdev(more) / math.sqrt(len(more))
    means = {what: fmean(values) for what, values in moved.items()}
    return {"end": end, **means, "more": fmean(more), "at least": fmean(more) - half, "at most": fmean(more) + half}


def sequences(report: Report) -> tuple[Tensor, Tensor]:
    """Training and validation sequences `[n, LENGTH]`; the most frequent words of the training text have numbers."""
    folder = report.asked.data / DATASET
    texts = {split: " ".join(read_texts(folder, split).texts).split() for split in ("train", "validation")}
    common = Counter(texts["train"]).most_common(WORDS - 1)
    known = {word: place + 1 for place, (word, _) in enumerate(common)}
    cut = {split: words[: len(words) // LENGTH * LENGTH] for split, words in texts.items()}
    found = {split: torch.tensor([known.get(word, 0) for word in words]) for split, words in cut.items()}
    return found["train"].view(-1, LENGTH), found["validation"].view(-1, LENGTH)


def trained(examples: Tensor, steps: int, seed: int) -> Any:
    """A new GPT-2 after some steps of Adam, its rate falling to 0."""
    import transformers

    shape: Any = transformers.GPT2Config
    still = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0, "bos_token_id": None, "eos_token_id": None}
    sizes = {"vocab_size": WORDS, "n_positions": LENGTH, "n_embd": WIDTH, "n_layer": LAYERS, "n_head": 2}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: Any = transformers.GPT2LMHeadModel(shape(**sizes, **still, use_cache=False, attn_implementation="eager"))
    optimizer = torch.optim.Adam(model.parameters(), lr=RATE)
    rate = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        batch = examples[torch.randint(len(examples), (BATCH,), generator=generator)]
        optimizer.zero_grad()
        model(input_ids=batch, labels=batch).loss.backward()
        optimizer.step()
        rate.step()
    return model.eval()

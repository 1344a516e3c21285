"""`index-texts`: what about a kilobyte an example finds on a language model, by several kinds of store.

A GPT-2 of 1,825,536 parameters (4 layers of 128, 8,000 words, 64 words a sequence), trained for a while on WikiText-2;
training sequences as examples, validation sequences as queries. The queries' adjoints are those of EK-FAC, in closed
form, so the exact scores are its scores; stores that are made from its eigenvectors have the advantage that they know
them. No store is rounded here: a byte a number would lose a little more.

    principal components    of gradients drawn by sqrt(loss): what `stagetrace index` keeps of models without words
    by layer                the same, a share of the numbers for each group of parameters
    EK-FAC coordinates      those of the largest eigenvalues
    low rank by layer       the leading directions of each layer's inputs and outputs (LoGra, started by PCA)
    words                   of each word of the sequence its row of the embedding's gradient, in leading directions
    words + EK-FAC          half of each: what the library keeps of this model, here not rounded (`index-words`)
    activations             the mean last hidden state, similar = helpful

`ceiling` rows keep parts of the gradients whole: what no store of that part can pass. Recall is of the top 100 at
either end, among all sequences, those of the basis too only where it says so.
"""

import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor

from benchmarks.report import Report, Row
from experiments.texts import read_texts
from stagetrace import EKFAC, Chain, Direct, Query, Shift, Stage
from stagetrace.curvature.ekfac.blocks import Block, BlockBasis
from stagetrace.index.basis import draw, losses_of, principal
from stagetrace.index.gradients import ExampleGradients
from stagetrace.objectives import NextToken
from stagetrace.solvers import solve
from stagetrace.stages.bound import BoundStage

DATASET, WORDS, LENGTH, WIDTH, LAYERS = "wikitext2", 8000, 64, 128, 4
SEQUENCES, QUERIES, DRAWN, FITTED = 3000, 20, 256, 256
STEPS, BATCH, RATE = 640, 12, 2e-3
NUMBERS = 996
AT_ONCE = 8
TOP = 100
EMBEDDING = "transformer.wte.weight"


def run(report: Report) -> None:
    """Train, solve, and compare."""
    asked, quick = report.asked, report.asked.quick
    train, validation = tokens(asked.data / DATASET)
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(asked.seed))
    examples = train[order[: 64 if quick else SEQUENCES]]
    model = trained(train[order[: 64 if quick else SEQUENCES]], 5 if quick else STEPS, asked.seed)
    rows = [{"input_ids": each} for each in examples]
    stage = Stage("language", model=model, objective=NextToken(), data=rows, batch_size=AT_ONCE)
    bound = Chain(stage)["language"]
    query = Query([{"input_ids": each} for each in validation[:QUERIES]], reduction="none", batch_size=4)
    report.fields |= {"parameters": bound.trained.size, "sequences": len(rows), "queries": QUERIES}
    started = time.process_time()
    operator = EKFAC(16 if quick else FITTED).operator(bound)
    eigen = operator.eigen()
    assert eigen is not None
    gradients = query.gradient(bound).trained
    solution = solve(operator, gradients, Direct("auto", Shift))
    report.say(f"EK-FAC and {QUERIES} queries: {time.process_time() - started:.0f} processor s, {solution.system}")
    basis = eigen.basis
    assert isinstance(basis, BlockBasis)
    _compare(report, bound, examples, basis, eigen.values, solution.value, validation[:QUERIES])


def _compare(
    report: Report,
    bound: BoundStage,
    examples: Tensor,
    basis: BlockBasis,
    values: Tensor,
    adjoints: Tensor,
    queries: Tensor,
) -> None:
    gradients = ExampleGradients(bound.risk)
    losses = losses_of(bound.risk, lambda *_, **__: None)
    drawn = draw(losses, 16 if report.asked.quick else DRAWN, report.asked.seed)
    stores = _Stores.made(gradients, drawn, basis, values, bound)
    exact, found = list[Tensor](), dict[str, list[Tensor]]()
    asked, started = stores.of(adjoints, None), time.process_time()
    for start in range(0, len(examples), AT_ONCE):
        some = examples[start : start + AT_ONCE]
        columns = gradients.vectors(range(start, start + len(some)))
        exact.append(-(columns.mT @ adjoints))
        for name, kept in stores.of(columns, some).items():
            found.setdefault(name, []).append(-stores.product(name, kept, asked[name], some))
    report.say(f"all stores of {len(examples):,} sequences: {time.process_time() - started:.0f} processor s")
    scores = {name: torch.cat(parts) for name, parts in found.items()}
    scores["activations"] = -_activations(bound, examples) @ _activations(bound, queries).mT
    scores["random order"] = torch.randn(
        len(examples), QUERIES, generator=torch.Generator().manual_seed(report.asked.seed)
    )
    unseen = torch.ones(len(examples), dtype=torch.bool)
    unseen[drawn] = False
    true = torch.cat(exact)
    table: list[Row] = [
        {"store": name, "numbers": stores.numbers.get(name), **agreement(true[unseen], each[unseen])}
        for name, each in scores.items()
    ]
    report.table(f"{int(unseen.sum()):,} sequences that no basis was made of, {QUERIES} queries", table, "stores")
    best = max(row["tenth of each end"] for row in table if not row["store"].startswith("ceiling"))
    report.target("misses of the best store after rescoring a tenth from the end asked for", 1 - best, 0.1)


@final
@dataclass(frozen=True, eq=False)
class _Stores:
    """What each kind keeps of gradients `[P, k]`, as `[k, numbers]`; of words with the words."""

    components: Tensor
    by_layer: list[tuple[Block, Tensor]]
    basis: BlockBasis
    leading: Tensor
    few: Tensor
    corners: list[tuple[Block, Tensor, Tensor]]
    table: Block
    directions: Tensor
    numbers: dict[str, int]

    @staticmethod
    def made(
        gradients: ExampleGradients, drawn: list[int], basis: BlockBasis, values: Tensor, bound: BoundStage
    ) -> "_Stores":
        """Each kind's own, from the drawn gradients or from EK-FAC."""
        columns = gradients.vectors(drawn)
        each = NUMBERS // len(basis.blocks)
        by_layer = [(block, _leading(block.layout.gather(columns).flatten(0, 1), each)) for block in basis.blocks]
        del columns
        components = principal(gradients, drawn, NUMBERS)
        table = next(block for block in basis.blocks if EMBEDDING in block.layout.names)
        elsewhere = values.clone()
        piece = table.layout.pieces[0]
        elsewhere[piece.start : piece.start + piece.size] = 0
        sides = [block for block in basis.blocks if block.left is not None and block.right is not None]
        side = int((NUMBERS / len(sides)) ** 0.5)
        corners = [
            (block, block.values.sum(1).topk(side).indices, block.values.sum(0).topk(side).indices) for block in sides
        ]
        directions = table.values.sum(0).argsort(descending=True)
        few = elsewhere.topk(NUMBERS // 2).indices
        numbers = {
            "principal components": components.shape[1],
            "by layer": sum(each.shape[1] for _, each in by_layer),
            "EK-FAC coordinates": NUMBERS,
            "low rank by layer": len(sides) * side**2,
            "words": LENGTH * (NUMBERS // LENGTH),
            "words + EK-FAC": LENGTH * (NUMBERS // 2 // LENGTH) + len(few),
        }
        leading = values.topk(NUMBERS).indices
        return _Stores(components, by_layer, basis, leading, few, corners, table, directions, numbers)

    def of(self, columns: Tensor, words: Tensor | None) -> dict[str, Any]:
        """Of examples with their words, or of adjoints without."""
        turned = self.basis.into(columns)
        rows = self.table.layout.gather(turned)[:, self.directions]  # [words, directions, k]
        whole = {"table": rows}
        rest = columns.clone()
        piece = self.table.layout.pieces[0]
        rest[piece.start : piece.start + piece.size] = 0
        corner = [block.layout.gather(turned)[one][:, other].flatten(0, 1) for block, one, other in self.corners]
        return {
            "principal components": (self.components.mT @ columns).mT,
            "by layer": torch.cat(
                [each.mT @ block.layout.gather(columns).flatten(0, 1) for block, each in self.by_layer]
            ).mT,
            "EK-FAC coordinates": turned[self.leading].mT,
            "low rank by layer": torch.cat(corner).mT,
            "words": whole,
            "words + EK-FAC": {**whole, "rest": turned[self.few].mT},
            "ceiling: rows of the sequence's words": whole,
            "ceiling: the whole embedding": rows.flatten(0, 1).mT,
            "ceiling: all but the embedding": rest.mT,
        }

    def product(self, name: str, kept: Any, asked: Any, words: Tensor) -> Tensor:
        """`[examples, queries]`."""
        if isinstance(kept, Tensor):
            return kept @ asked.mT
        width = {"words": NUMBERS // LENGTH, "words + EK-FAC": NUMBERS // 2 // LENGTH}.get(name, WIDTH)
        scores = [
            torch.einsum("wd,wdq->q", kept["table"][own][:, :width, place], asked["table"][own][:, :width])
            for place, own in enumerate(each.unique() for each in words)
        ]
        found = torch.stack(scores)
        return found + kept["rest"] @ asked["rest"].mT if "rest" in kept else found


def _leading(columns: Tensor, numbers: int) -> Tensor:
    """The principal components `[size, numbers]` of columns `[size, k]`."""
    values, vectors = torch.linalg.eigh((columns.mT @ columns).double())
    kept = min(numbers, int((values > 1e-6 * values[-1]).sum()))
    return torch.linalg.qr(columns @ vectors[:, -kept:].to(columns)).Q


def agreement(exact: Tensor, scores: Tensor) -> Row:
    """Correlation, and recall of the top 100 at either end `[n, queries]` by how many are rescored.

    Example:
        >>> both = torch.arange(3000.0).unsqueeze(1)
        >>> agreement(both, both)["alone"]
        1.0
    """
    one, other = (each - each.mean(dim=0) for each in (exact.double(), scores.double()))
    pearson = torch.nn.functional.cosine_similarity(one, other, dim=0)
    n = len(exact)
    found: Row = {"r, median": float(pearson.median())}
    top = min(TOP, n // 10)
    for name, count in (("alone", top), ("a tenth, both ends", n // 20), ("tenth of each end", n // 10)):
        shares = [
            len(set((sign * true).topk(top).indices.tolist()) & set((sign * said).topk(count).indices.tolist())) / top
            for true, said in zip(exact.mT, scores.mT, strict=True)
            for sign in (1, -1)
        ]
        found[name] = sum(shares) / len(shares)
    return found


def _activations(bound: BoundStage, sequences: Tensor) -> Tensor:
    """The mean last hidden states, of norm 1."""
    model: Any = bound.stage.model
    with torch.no_grad():
        states = [model.transformer(input_ids=some).last_hidden_state.mean(dim=1) for some in sequences.split(64)]
    return torch.nn.functional.normalize(torch.cat(states), dim=1)


def tokens(folder: Path) -> tuple[Tensor, Tensor]:
    """Training and validation sequences `[n, 64]`; the most frequent words of the training text have numbers."""
    texts = {split: " ".join(read_texts(folder, split).texts).split() for split in ("train", "validation")}
    common = Counter(texts["train"]).most_common(WORDS - 1)
    known = {word: place + 1 for place, (word, _) in enumerate(common)}
    cut = {split: words[: len(words) // LENGTH * LENGTH] for split, words in texts.items()}
    found = {split: torch.tensor([known.get(word, 0) for word in words]) for split, words in cut.items()}
    return found["train"].view(-1, LENGTH), found["validation"].view(-1, LENGTH)


def trained(sequences: Tensor, steps: int, seed: int) -> Any:
    """The model after some steps of AdamW on these sequences, its rate falling to 0."""
    import transformers

    shape: Any = transformers.GPT2Config
    torch.manual_seed(seed)
    model: Any = transformers.GPT2LMHeadModel(
        shape(
            vocab_size=WORDS,
            n_positions=LENGTH,
            n_embd=WIDTH,
            n_layer=LAYERS,
            n_head=4,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            bos_token_id=None,
            eos_token_id=None,
            use_cache=False,
            attn_implementation="eager",
        )
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE)
    rate = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1, (step + 1) / 20) * (1 - step / steps))
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        batch = sequences[torch.randint(len(sequences), (BATCH,), generator=generator)]
        loss = model(input_ids=batch, labels=batch).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        rate.step()
    return model.eval()

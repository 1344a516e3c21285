"""The fine-tuned trunk under both heads: what a method for one stage can be given of two."""

import copy
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, final

import torch
import torch.nn.functional as F
import typer
from torch import Tensor, nn

from benchmarks.two_stage.chains import CHAINS, FINETUNE, PRETRAIN, Asked, Start, families
from benchmarks.two_stage.predict import Kept, found_in, write_file
from benchmarks.two_stage.predictions import FOLDER, Truths
from benchmarks.two_stage.protocol import RECORDED_ORDER
from benchmarks.two_stage.truths import FOLDER as TRUTHS
from benchmarks.two_stage.truths import Truth, read_truths
from stagetrace import Chain
from stagetrace.objectives import NextToken
from stagetrace.objectives.labels import IGNORED
from stagetrace.objectives.objective import Objective
from stagetrace.stages.data import Examples

TRUNKS = {"cifar": "embedding", "bert": "bert", "bert-lora": "bert", "gpt": ""}
"""The module that both models of a chain have; "" where it is all of it."""


@final
class Both(nn.Module):
    """Two models over one trunk, the fine-tuned one: `first` has the pretraining's head, `last` the fine-tuned one.

    A parameter of the trunk is one parameter; the names of its modules begin with `first.`
    """

    def __init__(self, chain: Chain, trunk: str) -> None:
        super().__init__()
        models: list[Any] = [copy.deepcopy(chain[name].stage.model).eval() for name in (PRETRAIN, FINETUNE)]
        first, last = models
        if hasattr(last, "merge_and_unload"):  # LoRA: into the weights that it adapts
            last = last.merge_and_unload()
        if trunk:
            setattr(first, trunk, getattr(last, trunk))
            if hasattr(first, "tie_weights"):
                first.tie_weights()
        self.first: nn.Module = first if trunk else last
        self.last: nn.Module = last
        self.requires_grad_(True)
        self.trunk = f"first.{trunk}" if trunk else "first"


@final
@dataclass(frozen=True, eq=False)
class Single:
    """What a rival is given of one chain and seed: the model, and its examples with their losses.

    train, tests: lists of examples; collate: list of them -> batch.
    """

    start: Start
    model: Both
    train: Examples
    tests: Examples
    losses: Mapping[str, Objective]

    def batch(self, kind: str, places: Sequence[int]) -> Any:
        """Examples "first" (of pretraining) or "last" (of the test set), collated."""
        (found,) = (self.train if kind == "first" else self.tests).read([list(places)])
        return found.content

    def each_loss(self, kind: str, batch: Any, *, sample: bool = False) -> Tensor:
        """One loss per example; sample: with labels that the model itself draws (the true Fisher matrix)."""
        model, objective = getattr(self.model, kind), self.losses[kind]
        outputs = objective.outputs(model, batch)
        return objective.losses(outputs, drawn(objective, outputs, batch) if sample else batch)

    def by_query(self, each: Tensor) -> Tensor:
        """Removal effects `[tests, n]` as those of the start's queries, `[queries, n]`."""
        return torch.stack([each.mean(dim=0), *each[list(self.start.single)]])


def drawn(objective: Objective, outputs: Tensor, batch: Any) -> Any:
    """The batch with labels drawn from the model's outputs, where it has labels."""
    with torch.no_grad():
        labels = torch.distributions.Categorical(logits=outputs).sample()
    if not isinstance(batch, Mapping):
        return (batch[0], labels)
    if outputs.ndim == 2:
        return {**batch, "labels": labels}
    if isinstance(objective, NextToken):
        labels = F.pad(labels[:, :-1], (1, 0))  # what is read at a token is said of the next one
    tokens = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, IGNORED)
    return {**batch, "labels": labels.where(batch.get("labels", tokens) != IGNORED, IGNORED)}


def singles(asked: Asked, truths: Truths) -> Iterator[tuple[Single, Truth]]:
    """Every chain and seed that has a truth, as a rival is given it, and the truth."""
    count = len(next(iter(truths.values())).queries) - 1
    for seed in sorted({seed for _, seed in truths}):
        for name, family in families().items():
            if not any(CHAINS[chain] == name for chain, of in truths if of == seed):
                continue
            for start in family(asked, seed, count):
                if (start.name, seed) not in truths:
                    continue
                with tempfile.TemporaryDirectory() as folder:
                    chain = start.recorded(Path(folder), RECORDED_ORDER)
                    last = chain[FINETUNE].stage
                    tests = Examples(start.tests.data, 64, start.tests.collate or last.collate, 0, "the query")
                    losses = {"first": chain[PRETRAIN].stage.loss, "last": last.loss}
                    train = chain[PRETRAIN].stage.examples
                    yield Single(start, Both(chain, TRUNKS[start.name]), train, tests, losses), truths[start.name, seed]


def command(name: str, file: str, unit: str, effects: Callable[[Single], Tensor]) -> None:
    """The command line of an adapter: predict every chain by `effects(single) -> [tests, n]`, and write the file."""

    def main(
        data: Annotated[Path, typer.Option("--data", metavar="DIR", help="Folder of the data sets' folders.")],
        work: Annotated[Path, typer.Option("--work", metavar="DIR")] = Path("runs/two-stage"),
        truths: Annotated[Path, typer.Option("--truths", metavar="DIR")] = TRUTHS,
        out: Annotated[Path, typer.Option("--out", metavar="DIR")] = FOLDER,
        quick: Annotated[bool, typer.Option("--quick", help="Tiny stages, as the truths then are.")] = False,
    ) -> None:
        known, kept = read_truths(truths), Kept(work / "predicted")
        for single, truth in singles(Asked(data, work, quick), known):
            torch.manual_seed(truth.seed)
            try:
                kept.compute(file, truth, lambda single=single: single.by_query(effects(single)))
            except Exception as cause:  # whatever the other library raises: its other chains are still scored
                print(f"{truth.chain}, seed {truth.seed}: left out, {type(cause).__name__}: {cause}", flush=True)
                continue
            print(f"{truth.chain}, seed {truth.seed}", flush=True)
        for line in write_file(name, unit, file, found_in(kept, file, known), known, out):
            print(line)

    typer.run(main)

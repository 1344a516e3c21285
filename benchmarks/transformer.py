"""`transformer`: what padding costs, and what a product of the curvature costs, on the shapes of language models.

Padding is counted over all texts; seconds are the processor's, of scores of some of them along one vector, read as they
lie and by their lengths, in one run. A product is counted in multiply-adds over those of a gradient of the same
sequences, 3 for each of a forward pass:

    Hessian, retained graph                    6     2 gradients
    Gauss-Newton, retained graph               5     1.67: J v by forward mode computes the outputs beside it
    Gauss-Newton, retained reverse graph       4     1.33

The models have random weights; seconds depend on neither them nor on the words.
"""

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from benchmarks.products import counted
from benchmarks.report import Report, Row
from benchmarks.setting import Asked, batch_of, parameters
from benchmarks.timing import Work, in_turn
from benchmarks.transformer_memory import dropped, planning, rounded
from experiments.texts import new_tokenizer, read_texts
from stagetrace import Stage
from stagetrace.curvature.chunk import Product
from stagetrace.curvature.plan import make_plan
from stagetrace.curvature.probe import BY_REVERSE, RETAINED
from stagetrace.hf.collate import Collation
from stagetrace.objectives import MaskedToken, NextToken
from stagetrace.stages.bound import BoundStage
from stagetrace.stages.data import Batch, positions
from stagetrace.stages.gradient import batch_gradient
from stagetrace.stages.risk import Risk
from stagetrace.stages.sizes import read_by_size
from stagetrace.tracing.contract import contract, directions

WORDS, LONGEST, FEWEST_WORDS = 2000, 512, 4
SCORED, BATCH = 512, 32
PADDED, PRODUCT, APART = 1.1, 1.5, 1e-4
"""Aims: tokens with padding over tokens, gradients of a Gauss-Newton product, and the scores' relative difference."""

SHAPES = ("GPT-2", "Llama", "BERT")
SEQUENCES, LENGTH = 4, 128
CHANGED = 0.15
"""The share of tokens that a masked language model predicts."""


def run(report: Report) -> None:
    """Texts first, then products, plans, and what takes less memory."""
    torch.manual_seed(report.asked.seed)
    padding(report)
    products(report)
    planning(report, language_model)
    rounded(report, language_model, SHAPES)
    dropped(report, language_model, SHAPES)


def padding(report: Report) -> None:
    """Tokens and seconds of texts that are read as they lie, and by their lengths."""
    table = list[Row]()
    for name, rows in corpora(report.asked).items():
        stage = BoundStage.of(
            Stage(
                "only",
                model=language_model("GPT-2", LONGEST, 64, 2),
                objective=NextToken(),
                data=rows,
                collate=Collation(),
                batch_size=BATCH,
            ),
            None,
        )
        examples = stage.risk.examples
        tokens = sum(len(row["input_ids"]) for row in rows)
        lie = sum(_tokens(batch) for batch in examples.read(examples.batch_indices()))
        alike = sum(_tokens(batch) for batch in read_by_size(examples))
        few = range(min(len(examples), 128 if report.asked.quick else SCORED))
        orders: dict[str, Callable[[], Any]] = {
            "as they lie": lambda risk=stage.risk, few=few: risk.read(risk.examples.batch_indices(few)),
            "by length": lambda risk=stage.risk, few=few: risk.read_by_size(few),
        }
        adjoint = torch.randn(stage.trained.size, 1)
        found = {order: _scores(stage.risk, adjoint, len(few), read) for order, read in orders.items()}
        apart = float((found["by length"] - found["as they lie"]).abs().max() / found["as they lie"].abs().max())
        works: dict[str, Work] = {
            order: lambda read=read, few=few, risk=stage.risk, adjoint=adjoint: _scores(risk, adjoint, len(few), read)
            for order, read in orders.items()
        }
        times = in_turn(works, report.asked.repetitions(3), warmups=0, clock=time.process_time)
        least = {order: each.least for order, each in times.items()}
        table.append(
            {
                "texts": name,
                "number": len(examples),
                "tokens": tokens,
                "with padding, as they lie": lie / tokens,
                "with padding, by length": alike / tokens,
                **{f"scores of {len(few):,}, {order}, s": each for order, each in least.items()},
                "times faster": least["as they lie"] / least["by length"],
                "scores apart": apart,
            }
        )
    report.table(f"Texts of up to {LONGEST} tokens, {BATCH} a batch, along one vector", table, "padding")
    report.target("tokens with padding over tokens", max(row["with padding, by length"] for row in table), PADDED)
    report.target(
        "scores by length and as they lie, relatively apart", max(row["scores apart"] for row in table), APART
    )


def corpora(asked: Asked) -> dict[str, list[dict[str, Any]]]:
    """Lines of general text and tweets, as tokens of one tokenizer."""
    lines = read_texts(asked.data / "wikitext2", "train").of_words(FEWEST_WORDS, 100_000)
    tweets = read_texts(asked.data / "gop_debate", "train")
    few = 1000 if asked.quick else None
    texts = {name: some.drawn(few, asked.seed).texts for name, some in (("lines", lines), ("tweets", tweets))}
    tokenizer = new_tokenizer([text for some in texts.values() for text in some], "pieces", WORDS, longest=LONGEST)

    def rows(some: Sequence[str]) -> list[dict[str, Any]]:
        ids = [each[:LONGEST] for each in tokenizer(list(some))["input_ids"]]
        return [{"input_ids": each, "attention_mask": [1] * len(each), "labels": each} for each in ids]

    return {name: rows(some) for name, some in texts.items()}


def products(report: Report) -> None:
    """Each way to multiply, on each shape."""
    table, worst = list[Row](), 0.0
    for shape in SHAPES:
        risk = _risk(shape, report.asked.seed)
        batch, vector = batch_of(risk, list(range(SEQUENCES))), torch.randn(risk.trained.size, 1)
        ways: dict[str, Product] = {
            "Hessian, retained graph": RETAINED["Hessian"](risk, batch),
            "GaussNewton, retained graph": RETAINED["GaussNewton"](risk, batch),
            "GaussNewton, retained reverse graph": BY_REVERSE["GaussNewton"](risk, batch),
        }
        works: dict[str, Work] = {"gradient": lambda risk=risk, batch=batch: batch_gradient(risk, batch)}
        works |= {name: lambda way=way, vector=vector: way(vector) for name, way in ways.items()}
        times = in_turn(works, report.asked.repetitions(5), warmups=1, clock=time.process_time)
        base = counted(works["gradient"])
        plan = make_plan(risk, "GaussNewton", range(SEQUENCES), SEQUENCES, 2 * 2**30)
        chosen = f"GaussNewton, {plan.way}"
        for name, each in times.items():
            table.append(
                {
                    "shape": f"{shape}, {parameters(risk.evaluation.model):,} parameters",
                    "work": name,
                    "s": each.least,
                    "gradients": each.least / times["gradient"].least,
                    "counted": counted(works[name]) / base,
                    "chosen": "yes" if name == chosen else "",
                }
            )
        worst = max(worst, times[chosen].least / times["gradient"].least)
    report.table(f"Products over {SEQUENCES} sequences of {LENGTH} tokens", table, "shapes")
    report.target("the chosen Gauss-Newton product on transformers, in gradients", worst, PRODUCT)


def language_model(shape: str, longest: int, width: int, layers: int, words: int = WORDS) -> Any:
    """A model of that shape with random weights, without dropout."""
    import transformers

    heads = max(2, width // 64)
    common: dict[str, Any] = {"vocab_size": words, "bos_token_id": 0, "eos_token_id": 0}
    if shape == "GPT-2":
        common |= {"n_positions": longest, "n_embd": width, "n_layer": layers, "n_head": heads}
        dropout: dict[str, Any] = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
        return transformers.GPT2LMHeadModel(transformers.GPT2Config(**common, **dropout)).eval()
    common |= {"hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": heads}
    common |= {"max_position_embeddings": longest}
    if shape == "Llama":
        common |= {"intermediate_size": 8 * width // 3, "num_key_value_heads": heads // 2}
        return transformers.LlamaForCausalLM(transformers.LlamaConfig(**common)).eval()
    common |= dict.fromkeys(("hidden_dropout_prob", "attention_probs_dropout_prob"), 0.0)
    return transformers.BertForMaskedLM(transformers.BertConfig(intermediate_size=4 * width, **common)).eval()


def _risk(shape: str, seed: int) -> Risk:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(WORDS, (SEQUENCES, LENGTH), generator=generator)
    labels = ids.clone()
    if shape == "BERT":
        labels[torch.rand(ids.shape, generator=generator) > CHANGED] = -100
    data = [
        {"input_ids": row, "labels": label, "attention_mask": torch.ones_like(row)}
        for row, label in zip(ids, labels, strict=True)
    ]
    objective = MaskedToken() if shape == "BERT" else NextToken()
    model = language_model(shape, LENGTH, 256, 4)
    return BoundStage.of(Stage("only", model=model, objective=objective, data=data), None).risk


def _scores(risk: Risk, adjoint: Tensor, number: int, read: Callable[[], Any]) -> Tensor:
    found, along = torch.empty(number), directions(risk.trained, adjoint)
    for batch in read():
        found[positions(batch.indices)] = contract("forward mode", risk, batch, adjoint, along)[1][:, 0]
    return found


def _tokens(batch: Batch) -> int:
    return batch.content["input_ids"].numel()

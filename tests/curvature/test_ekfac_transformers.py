"""EK-FAC of small transformers: every layer is tapped, padding counts for nothing, and the trace is Gauss-Newton's."""

from typing import Any

import pytest
import torch
from torch import Tensor

from stagetrace import EKFAC, Stage
from stagetrace.objectives import Classification, NextToken
from stagetrace.stages.bound import BoundStage
from stagetrace.taps import tap

transformers = pytest.importorskip("transformers")

WORDS, WIDTH, LENGTH, N = 20, 8, 7, 6  # fewer words than are drawn of: their expectation is had from all of them


def texts(words: int = WORDS) -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [
        {
            "input_ids": torch.randint(3, words, (LENGTH,), generator=generator),
            "attention_mask": (torch.arange(LENGTH) < 3 + i % 5).long(),
        }
        for i in range(N)
    ]


def model_of(kind: str, words: int = WORDS) -> Any:
    sizes = {"vocab_size": words, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
    sized = {"hidden_size": WIDTH, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8, **sizes}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        if kind == "gpt2":
            config = transformers.GPT2Config(n_positions=LENGTH, n_embd=WIDTH, n_layer=1, n_head=2, **sizes)
            return transformers.GPT2LMHeadModel(config).double()
        if kind == "bert":
            config = transformers.BertConfig(max_position_embeddings=LENGTH, **sized)
            return transformers.BertForSequenceClassification(config).double()
        if kind == "llama":
            return transformers.LlamaForCausalLM(transformers.LlamaConfig(**sized)).double()
        config = transformers.MixtralConfig(num_key_value_heads=1, num_local_experts=3, **sized)
        return transformers.MixtralForCausalLM(config).double()


def bound_of(kind: str, words: int = WORDS) -> BoundStage:
    data = texts(words)
    if kind == "bert":
        data = [{**text, "labels": torch.tensor(i % 2)} for i, text in enumerate(data)]
    objective = Classification() if kind == "bert" else NextToken()
    return BoundStage.of(Stage("only", model=model_of(kind, words), objective=objective, data=data), None)


def trace_of_gauss_newton(bound: BoundStage) -> float:
    """`(1/n) sum_i,t w_it sum_c p_c |J_itc - sum_b p_b J_itb|^2` by plain autograd, a row of the Jacobian at a time."""
    model, total = bound.stage.model.eval(), 0.0
    parameters = [p for p in model.parameters() if p.requires_grad]
    for example in bound.stage.examples.data:
        labels = example.get("labels")
        inputs = {key: value.unsqueeze(0) for key, value in example.items() if key != "labels"}
        logits = model(**inputs, **({} if labels is not None else {"use_cache": False})).logits[0]
        # a logit's row counts where it predicts: a text's tokens but the last one that is no padding
        kept = logits.unsqueeze(0) if labels is not None else logits[: int(example["attention_mask"].sum()) - 1]
        for at in kept:
            rows = [torch.autograd.grad(z, parameters, retain_graph=True, materialize_grads=True) for z in at]
            jacobian = torch.stack([torch.cat([g.reshape(-1) for g in row]) for row in rows])
            p = at.softmax(0).detach()
            centred = jacobian - p @ jacobian
            total += float(p @ centred.square().sum(dim=1)) / len(kept)
    return total / N


def trace_of(bound: BoundStage, **settings: Any) -> float:
    eigen = EKFAC(**settings).operator(bound).eigen()
    assert eigen is not None
    return float(eigen.values.sum())


@pytest.mark.parametrize("kind", ["gpt2", "bert", pytest.param("llama", marks=pytest.mark.slow)])
def test_the_trace_is_gauss_newton_s_and_all_is_tapped(kind: str) -> None:
    bound = bound_of(kind)
    assert not tap(bound.risk).rest
    found, expected = trace_of(bound, exact=0), trace_of_gauss_newton(bound)
    # of tokens the signs are drawn, which leaves the cross terms of different tokens in
    assert abs(found / expected - 1) < (1e-8 if kind == "bert" else 0.15)
    if kind == "gpt2":
        several = [trace_of(bound, exact=16, seed=seed) for seed in range(1, 9)]
        assert abs(sum(several) / 8 / expected - 1) < 0.05


@pytest.mark.slow
def test_labels_are_drawn_of_many_words() -> None:
    bound = bound_of("gpt2", words=40)
    assert any("1 label drawn of 40 at each position" in note for note in EKFAC().operator(bound).notes)
    assert abs(trace_of(bound, draws=100) / trace_of_gauss_newton(bound) - 1) < 0.08


@pytest.mark.slow
def test_experts_in_one_tensor_are_left_to_autograd() -> None:
    bound = bound_of("mixtral")
    (note,) = EKFAC().operator(bound).notes
    assert "covers all" in note
    assert "mlp.experts" in note

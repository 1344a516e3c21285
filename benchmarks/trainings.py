"""Trainings as users write them, of a few kinds of models made from their configuration, to record and to time."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import torch
import transformers
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from experiments.networks import ConvNet
from stagetrace import Chain, Recording, Stage, Unrolled
from stagetrace.recording import Recorded


@final
@dataclass(frozen=True)
class Training:
    """One training: its model with random weights, and random examples, since the work depends on neither.

    losses: of a batch, one for each example; their mean goes backward. clip: the largest norm of a gradient.
    """

    name: str
    model: Callable[[], nn.Module]
    rows: Callable[[int], list[Any]]
    losses: Callable[[nn.Module, Any], Tensor]
    optimizer: Callable[[Any], torch.optim.Optimizer]
    steps: int
    batch: int
    clip: float | None = None

    def made(self) -> nn.Module:
        torch.manual_seed(0)
        return self.model()

    def data(self) -> list[Any]:
        torch.manual_seed(1)
        return self.rows(self.steps * self.batch)

    def run(self, rows: list[Any], folder: Path | None = None, every: int | str = "auto") -> nn.Module:
        """Train, recorded where a folder is given."""
        model = self.made().train()
        optimizer = self.optimizer(model.parameters())
        torch.manual_seed(2)
        loader: DataLoader[Any] = DataLoader(rows, self.batch, shuffle=True)  # type: ignore[arg-type]

        def loop(batches: Any) -> None:
            for batch in batches:
                optimizer.zero_grad()
                self.losses(model, batch).mean().backward()
                if self.clip is not None:
                    nn.utils.clip_grad_norm_(model.parameters(), self.clip)
                optimizer.step()

        if folder is None:
            loop(loader)
        else:
            with Recording(folder, model, optimizer, every=every) as recording:
                loop(recording.loader(loader))
        return model.eval()

    def chain(self, rows: list[Any], folder: Path, memory: int = 2 * 2**30) -> Chain:
        """A chain of the recorded stage alone, its model as the recording left it."""
        model, recorded = self.made(), Recorded.load(folder)
        end = recorded.state(recorded.steps)
        model.load_state_dict({**end.values, **end.buffers}, strict=False)
        link = Unrolled(recording=recorded, memory=memory)
        return Chain(Stage("only", model=model.eval(), objective=self.losses, data=rows, link=link))


def _images(channels: int, side: int) -> Callable[[int], list[Any]]:
    def rows(count: int) -> list[Any]:
        return [(torch.randn(channels, side, side), label % 10) for label in range(count)]

    return rows


def _texts(length: int, words: int, labels: int | None = None) -> Callable[[int], list[Any]]:
    def rows(count: int) -> list[Any]:
        tokens = torch.randint(0, words, (count, length))
        return [
            {"input_ids": row, **({} if labels is None else {"labels": n % labels})} for n, row in enumerate(tokens)
        ]

    return rows


def of_images(model: nn.Module, batch: Any) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1], reduction="none")


def of_classes(model: nn.Module, batch: Any) -> Tensor:
    logits = model(input_ids=batch["input_ids"]).logits
    return F.cross_entropy(logits, batch["labels"], reduction="none")


def of_next_tokens(model: nn.Module, batch: Any) -> Tensor:
    logits = model(input_ids=batch["input_ids"]).logits[:, :-1]
    return F.cross_entropy(logits.mT, batch["input_ids"][:, 1:], reduction="none").mean(dim=1)


def of_masked_tokens(model: nn.Module, batch: Any) -> Tensor:
    logits = model(input_ids=batch["input_ids"]).logits
    return F.cross_entropy(logits.mT, batch["input_ids"], reduction="none").mean(dim=1)


def bert(kind: Any, words: int, width: int, layers: int, length: int, **more: Any) -> nn.Module:
    """A BERT with four times as wide layers between, and PyTorch's default dropout of 0.1."""
    heads = max(4, width // 32)
    return kind(
        transformers.BertConfig(
            vocab_size=words,
            hidden_size=width,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            intermediate_size=4 * width,
            max_position_embeddings=length,
            **more,
        )
    )


def gpt2(words: int, width: int, layers: int, length: int) -> nn.Module:
    settings: dict[str, Any] = {"n_embd": width, "n_layer": layers, "n_head": 4, "n_positions": length}
    return transformers.GPT2LMHeadModel(
        transformers.GPT2Config(vocab_size=words, bos_token_id=0, eos_token_id=0, **settings)
    )


def adamw(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=1e-3, weight_decay=0.01)


def adam(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, lr=1e-3)


def nesterov(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.01, momentum=0.9, nesterov=True)


CLASSIFIER, MASKED = transformers.BertForSequenceClassification, transformers.BertForMaskedLM

DIGITS = Training("ConvNet, 28 x 28, Adam", lambda: ConvNet((1, 28, 28), 10), _images(1, 28), of_images, adam, 36, 128)
DIGITS_SGD = Training(
    "ConvNet, 28 x 28, SGD", lambda: ConvNet((1, 28, 28), 10), _images(1, 28), of_images, nesterov, 36, 128
)
COLOURS = Training(
    "ConvNet, 32 x 32 x 3, Adam", lambda: ConvNet((3, 32, 32), 10), _images(3, 32), of_images, adam, 36, 128
)
SMALL_BERT = Training(
    "BERT, 2 layers of 128",
    lambda: bert(CLASSIFIER, 8192, 128, 2, 32, num_labels=2),
    _texts(32, 8192, labels=2),
    of_classes,
    adamw,
    steps=25,
    batch=16,
    clip=1.0,
)
SMALL_GPT2 = Training(
    "GPT-2, 2 layers of 128",
    lambda: gpt2(2048, 128, 2, 64),
    _texts(64, 2048),
    of_next_tokens,
    adamw,
    steps=25,
    batch=8,
    clip=1.0,
)
TINY_BERT = Training(
    "BERT, 1 layer of 48", lambda: bert(MASKED, 600, 48, 1, 32), _texts(24, 600), of_masked_tokens, adamw, 120, 16, 1.0
)
TINY_GPT2 = Training(
    "GPT-2, 2 layers of 64", lambda: gpt2(600, 64, 2, 32), _texts(24, 600), of_next_tokens, adamw, 120, 16, 1.0
)
MEDIUM_BERT = Training(
    "BERT, 4 layers of 256",
    lambda: bert(CLASSIFIER, 8192, 256, 4, 64, num_labels=2),
    _texts(64, 8192, labels=2),
    of_classes,
    adamw,
    steps=25,
    batch=16,
    clip=1.0,
)

"""WikiText-2 in words, and a GPT-2 of 8.9 million parameters that was trained on a part of it for some steps."""

from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, final

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from benchmarks.rivals.given import gpt2
from benchmarks.setting import Asked
from experiments.texts import read_texts

CORPUS = "wikitext2"


@final
@dataclass(frozen=True)
class Sizes:
    """words: of the vocabulary, the commonest. length: tokens of a sequence. steps, batch, rate: of Adam."""

    words: int = 16_000
    length: int = 128
    width: int = 256
    layers: int = 6
    heads: int = 4
    steps: int = 200
    batch: int = 8
    rate: float = 1e-3

    def config(self) -> dict[str, Any]:
        shape = {"vocab_size": self.words, "n_positions": self.length, "n_embd": self.width}
        return shape | {"n_layer": self.layers, "n_head": self.heads}


FULL = Sizes()
QUICK = Sizes(words=300, length=16, width=32, layers=2, heads=2, steps=5, batch=4)


def sizes(asked: Asked) -> Sizes:
    return QUICK if asked.quick else FULL


def sequences(asked: Asked) -> tuple[Tensor, Tensor]:
    """Tokens `[n, length]` of the training and of the validation text; 0 stands for every rarer word."""
    of = sizes(asked)
    train, validation = (" ".join(read_texts(asked.data / CORPUS, split).texts).split() for split in SPLITS)
    common = Counter(train).most_common(of.words - 1)
    numbers = {word: place for place, (word, _) in enumerate(common, start=1)}
    cut = [torch.tensor([numbers.get(word, 0) for word in words]) for words in (train, validation)]
    found = [tokens[: len(tokens) // of.length * of.length].view(-1, of.length) for tokens in cut]
    return found[0], found[1]


SPLITS = ("train", "validation")


def language_model(asked: Asked, folder: Path, train: Tensor) -> nn.Module:
    """Trained now, or as it was kept; every step sees other sequences, in the text's order."""
    of = sizes(asked)
    torch.manual_seed(asked.seed)
    model = gpt2(of.config())
    kept = folder / f"gpt2-{of.width}-{of.layers}-{of.steps}-{asked.seed}.safetensors"
    if kept.exists():
        model.load_state_dict(load_file(kept), strict=False)  # the head is the table of tokens
        return model.eval()
    optimiser = torch.optim.Adam(model.parameters(), lr=of.rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, of.steps)
    model.train()
    for batch in train[: of.steps * of.batch].split(of.batch):
        optimiser.zero_grad()
        logits = model(batch).logits[:, :-1]
        F.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten()).backward()
        optimiser.step()
        schedule.step()
    folder.mkdir(parents=True, exist_ok=True)
    state = {name: value for name, value in model.state_dict().items() if name != "lm_head.weight"}
    save_file(state, kept, {"sizes": str(asdict(of))})
    return model.eval()

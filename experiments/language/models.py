"""What stands on top of `elmo.Elmo` in each stage: a softmax over words, or a classifier of sentences."""

from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from experiments.language.elmo import Batch, Elmo, Shape


@final
class FullSoftmax(nn.Module):
    """States `[n, projection]` -> a logit for each word of the vocabulary, `[n, vocabulary]`."""

    def __init__(self, projection: int, vocabulary: int) -> None:
        super().__init__()
        self.word = nn.Linear(projection, vocabulary)

    def forward(self, states: Tensor, batch: Batch) -> Tensor:
        del batch
        return self.word(states)


@final
class SampledSoftmax(nn.Module):
    """The right word against `negatives` others: `[n, 1 + negatives]`, the right word first.

    The others are drawn once by the seed, with replacement, in proportion to `log((w + 2) / (w + 1))` for the w-th
    commonest word, so the loss of a sentence never depends on its batch. The logarithm of a word's expected count is
    taken off its logit; where a drawn word is the right one it does not count against itself.

    Source: Jean et al. (2015), On using very large target vocabulary for neural machine translation.
    """

    drawn: Tensor
    expected: Tensor

    def __init__(self, projection: int, vocabulary: int, negatives: int, seed: int) -> None:
        super().__init__()
        self.word = nn.Linear(projection, vocabulary)
        ranks = torch.arange(vocabulary, dtype=torch.float64)
        chances = (1 / (ranks + 1)).log1p() / torch.tensor(vocabulary + 1.0, dtype=torch.float64).log()
        drawn = torch.multinomial(chances, negatives, True, generator=torch.Generator().manual_seed(seed))
        self.register_buffer("drawn", drawn)
        self.register_buffer("expected", (chances * negatives).log().float())

    def forward(self, states: Tensor, batch: Batch) -> Tensor:
        answers, drawn, expected = batch["answers"], self.drawn, self.expected
        weight, bias = self.word.weight, self.word.bias
        right = (states * F.embedding(answers, weight)).sum(dim=1) + bias[answers] - expected[answers]
        others = F.linear(states, weight[drawn], bias[drawn]) - expected[drawn]
        hits = torch.eq(answers.unsqueeze(1), drawn)
        return torch.cat([right.unsqueeze(1), others.masked_fill(hits, -1e4)], dim=1)


@final
class LanguageModel(nn.Module):
    """The pretraining stage: a logit of each word (of the softmax) for each prediction, `[predictions, words]`."""

    def __init__(self, shape: Shape, softmax: FullSoftmax | SampledSoftmax) -> None:
        super().__init__()
        self.elmo, self.softmax = Elmo(shape), softmax

    def forward(self, batch: Batch) -> Tensor:
        ahead, back = (half.flatten(0, 1) for half in self.elmo(batch)[-1].chunk(2, dim=2))
        return self.softmax(torch.cat([ahead[batch["before"]], back[batch["after"]]]), batch)


@final
class Head(nn.Module):
    """Features `[batch, features]` -> logits `[batch, classes]`, by one hidden layer of tanh."""

    def __init__(self, features: int, hidden: int, classes: int) -> None:
        super().__init__()
        self.hidden, self.classes = nn.Linear(features, hidden), nn.Linear(hidden, classes)

    def forward(self, features: Tensor) -> Tensor:
        return self.classes(self.hidden(features).tanh())


@final
class Classifier(nn.Module):
    """The fine-tuning stage: a sentence's features are the mean over its tokens and over the three layers.

    They are standardised by numbers that `standardise` fixes once; from then on these are constants.
    """

    def __init__(self, shape: Shape, hidden: int, classes: int) -> None:
        super().__init__()
        self.elmo, self.head = Elmo(shape), Head(shape.features, hidden, classes)
        self.standard = nn.BatchNorm1d(shape.features, affine=False)

    def features(self, batch: Batch) -> Tensor:
        """`[batch, features]`; the module is meant to be in eval mode."""
        states = torch.stack(self.elmo(batch)).mean(dim=0)
        return self.standard((states * batch["shares"].to(states).unsqueeze(2)).sum(dim=1))

    def standardise(self, features: Tensor) -> None:
        """From now on these `[n, features]`, which the network gave before, have mean 0 and variance 1."""
        self.standard.running_mean = features.mean(dim=0)
        self.standard.running_var = features.var(dim=0)

    def forward(self, batch: Batch) -> Tensor:
        return self.head(self.features(batch))

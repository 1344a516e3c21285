"""What `language` reads: One Billion Word sentences for the first stage, tweets of the GOP debate for the second."""

from dataclasses import asdict, dataclass
from typing import Any, final

from experiments.language.elmo import Shape
from experiments.language.text import Reader, with_words
from experiments.settings import Settings
from experiments.texts import Corpora, new_tokenizer, read_texts
from stagetrace.errors import refuse

SENTENCES, TWEETS = "obw", "gop_debate"


@final
@dataclass(frozen=True)
class Size:
    """How large the network is, and what it reads.

    words: of a sentence, from and to, marks not counted. sentences, tweets, tests: how many are drawn by the seed; of
    tests the first in the draw's order are the query. vocabulary: words that are predicted, special tokens among them.
    letters: characters a word, its marks among them. tokens: the most of a tweet. lower: whether capitals are kept.
    hidden: of the classifier.
    """

    shape: Shape
    words: tuple[int, int]
    sentences: int
    tweets: int
    tests: int
    vocabulary: int
    letters: int
    lower: bool
    tokens: int = 42
    hidden: int = 64

    def __post_init__(self) -> None:
        widest = max(wide for wide, _ in self.shape.filters)
        if self.letters < max(widest, 3):
            refuse(f"Size(letters={self.letters}): a filter is {widest} characters wide; type at least that many")


def record(read: Corpora, size: Size) -> dict[str, Any]:
    """What the checkpoints depend on, as plain values."""
    numbers = {"words": size.words, "vocabulary": size.vocabulary, "letters": size.letters, "lower": size.lower}
    return {"shape": asdict(size.shape), **numbers, "data": read.digest}


def corpora(size: Size, settings: Settings) -> Corpora:
    """Read, cut and draw.

    The vocabulary is that of all training sentences, whatever their length.

    Raises:
        DataError: a data set is not there or has no sentence of that length.
    """
    every = read_texts(settings.folder(SENTENCES), "train")
    tokenizer = new_tokenizer(every.texts, "words", size.vocabulary, longest=size.tokens, lower=size.lower)
    reader = Reader(tokenizer, size.letters, size.tokens)
    tweets, tests = (read_texts(settings.data / TWEETS, split) for split in ("train", "test"))
    unseen = with_words(read_texts(settings.folder(SENTENCES), "test"), reader, *size.words)
    return Corpora(
        with_words(every, reader, *size.words).drawn(settings.most(size.sentences), settings.seed),
        unseen.drawn(size.tests, settings.seed),
        tweets.drawn(settings.most(size.tweets), settings.seed),
        tests.drawn(settings.most(size.tests), settings.seed),
        reader,
    )

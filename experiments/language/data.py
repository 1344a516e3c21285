"""What `language` reads: One Billion Word sentences for the first stage, tweets of the GOP debate for the second."""

from dataclasses import asdict, dataclass
from typing import Any, final

from experiments.corpora import Texts, new_tokenizer, read_texts
from experiments.language.elmo import Shape
from experiments.language.text import Reader, with_words
from experiments.settings import Settings
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


@final
@dataclass(frozen=True, eq=False)
class Corpora:
    """The texts of both stages, the test tweets, unseen sentences, and how all of them are read."""

    sentences: Texts
    unseen: Texts
    tweets: Texts
    tests: Texts
    reader: Reader

    def record(self, size: Size) -> dict[str, Any]:
        """What the checkpoints depend on, as plain values."""
        texts = (self.sentences, self.tweets, self.tests)
        shape = {
            key: [list(one) for one in value] if key == "filters" else value
            for key, value in asdict(size.shape).items()
        }
        numbers = {"words": list(size.words), "vocabulary": size.vocabulary, "letters": size.letters}
        return {"shape": shape, **numbers, "lower": size.lower, "data": [each.digest for each in texts]}


def corpora(size: Size, settings: Settings) -> Corpora:
    """Read, cut and draw.

    The vocabulary is that of all training sentences, whatever their length.

    Raises:
        DataError: a data set is not there or has no sentence of that length.
    """
    every = read_texts(settings.folder(SENTENCES), "train")
    tokenizer = new_tokenizer(every.texts, "words", size.vocabulary, longest=size.tokens, lower=size.lower)
    reader = Reader(tokenizer, size.letters, size.tokens)
    few = settings.examples
    tweets, tests = (read_texts(settings.data / TWEETS, split) for split in ("train", "test"))
    unseen = with_words(read_texts(settings.folder(SENTENCES), "test"), reader, *size.words)
    return Corpora(
        with_words(every, reader, *size.words).drawn(min(few or size.sentences, size.sentences), settings.seed),
        unseen.drawn(size.tests, settings.seed),
        tweets.drawn(min(few or size.tweets, size.tweets), settings.seed),
        tests.drawn(min(few or size.tests, size.tests), settings.seed),
        reader,
    )

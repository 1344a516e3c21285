"""What a query may ask of a stage that learned from pairs: pairs, or the loss of a text."""

from stagetrace.errors import refuse
from stagetrace.hf.columns import Columns
from stagetrace.hf.labels import Labels
from stagetrace.hf.masking import Masking
from stagetrace.hf.packages import base_of
from stagetrace.hf.pairs import PairReader
from stagetrace.hf.reader import Reader
from stagetrace.hf.sentences import Sentences
from stagetrace.hf.signature import main_of, takes
from stagetrace.hf.task import Task, task_named
from stagetrace.hf.tokenizing import longest_of, size_of
from stagetrace.stages.stage import Stage

__all__ = ["asks_for_texts", "reader_of_texts"]


def asks_for_texts(read: Sentences, stage: Stage) -> bool:
    """Whether a query of texts goes to a stage of pairs, whose own loss is of two texts each."""
    held = stage.data
    return isinstance(held, Sentences) and isinstance(held.reader, PairReader) and isinstance(read.reader, Reader)


def reader_of_texts(reader: PairReader, stage: Stage) -> Reader:
    """A reader of texts with the tokenizer of the stage's trainer.

    Raises:
        DescriptionError: the stage's model is no causal language model.
    """
    if task_named(type(base_of(stage.model))) is not Task.CAUSAL:
        refuse(
            f"the query: the rows are not prepared as those of {stage.where} are, which have the columns "
            f"{', '.join(map(repr, sorted(reader.expected or ())))}; give rows of its trainer's train_dataset, or "
            "Query(rows, objective=losses, collate=...) with a loss of your own"
        )
    config, tokenizer = base_of(stage.model).config, getattr(reader.tokenizer, "tokenizer", reader.tokenizer)
    return Reader(
        Task.CAUSAL,
        Columns(("text",), None, (), main_of(stage.model)),
        Labels.of(Task.CAUSAL, config),
        tokenizer,
        takes(stage.model),
        longest_of(tokenizer, stage.model),
        Masking(),
        stage.where,
        size=size_of(config),
    )

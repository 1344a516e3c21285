"""Corpora as they lie on disk, as data sets of rows: `Stage(..., data=...)`, `hf.stage(name, model, data)`.

    from stagetrace import hf
    from stagetrace.corpora import Jsonl

    pretrain = hf.stage("pretrain", "models/language", Jsonl("corpus/*.jsonl"))

- `Jsonl(files)`: an object a line.
- `ParquetShards(files)`: rows of Parquet files.
- `TarShards(files)`: WebDataset's tar files.
- `Stream(rows, spill=FOLDER, length=n)`: a `datasets.IterableDataset`, or another stream of dicts, kept on disk once.
- `TokenFile(path, dtype=, length=, order=)`: token ids in one memory-mapped file, in the order in which they were read.

Each has a length and indices, gives the same example however often it is read, goes to the workers of a data loader,
and holds a few examples, and where each one lies. Files that are written to while they are in use are refused by name.
"""

from stagetrace.corpora.jsonl import Jsonl
from stagetrace.corpora.parquet import ParquetShards
from stagetrace.corpora.stream import Stream
from stagetrace.corpora.tar import TarShards
from stagetrace.corpora.tokens import Span, TokenFile

__all__ = ["Jsonl", "ParquetShards", "Span", "Stream", "TarShards", "TokenFile"]

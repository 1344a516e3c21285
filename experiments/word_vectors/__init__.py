"""`word-vectors`: skip-gram with negative sampling, and a classifier of tweets on the vectors that are kept."""

from experiments.word_vectors.experiment import NAME as NAME
from experiments.word_vectors.experiment import run as run

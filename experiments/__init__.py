"""Experiments with stagetrace on real data, outside the package: `python -m experiments NAME --data DIR --out DIR`.

A module per experiment (`mnist_frozen.py`), a word for it in `__main__.py`, and what they share beside them:

language/       `language`: the ELMo-shaped network, its texts and stages, what a score costs at the paper's size
word_vectors/   `word-vectors`: skip-gram, a classifier on its vectors, a larger size
bert_and_gpt/   `bert` and `gpt`: models, texts, stages, traces and comparison of small transformers
folders.py      data sets in the Hugging Face layout
images.py       images and labels from such a folder
corpora.py      texts and labels, and tokenizers trained on them
paper.py        the paper's protocol: take one example out, go on training, compare
small.py        chains small enough to be solved to strict minima
two_stages.py   both stages of one seed, trained or found on disk
intervals.py    a mean over seeds and how far it can be trusted
pages/          the tables in docs/experiments, filled from results
recorded.py     a validation as plain numbers
agreement_figures.py  predictions beside what retraining did
tasks.py        which classes the first stage saw, which the second, which the query asks about
networks.py     the models
training.py     how a stage was trained, and how well
checkpoints.py  trained stages on disk, trained anew only if their settings are new
tracing.py      what a trace says of itself: its work, its warnings, the ends of its ranking
figures.py      pictures of the examples and of their scores
result.py       result.json
settings.py     what the command line asked for
results/        result.json and figures of the runs that are reported

Needs the extra `stagetrace[experiments]`.
"""

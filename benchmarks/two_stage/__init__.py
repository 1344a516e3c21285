"""The two-stage benchmark: does a method foresee what leaving pretraining examples out does to a fine-tuned model?

Chains are really trained, pretraining and then a fine-tuning that trains everything (or LoRA), and really trained again
without random subsets of the pretraining examples. What came out is committed here, so that any method is scored from
a file of its predictions in seconds, without a data set and without training anything.

    python -m benchmarks two-stage score FILE...              a method against the committed truths
    python -m benchmarks two-stage table                      every method of `predictions/`: table, figures
    python -m benchmarks two-stage predict --data DIR         the library's own estimators and controls
    python -m benchmarks two-stage make --data DIR            the truths themselves

Read in this order:

protocol.py     which subsets are left out, and what is done in which order
chains.py       a chain before its recorded training, and the table of chains; queries with a row for each question
images.py       the chain of images
texts.py        the chains of texts
make.py         trains every chain again without each subset, and writes the truths
truths.py       the file of a truth
predictions.py  the file of a method's predictions: what it must hold, and how it is refused
score.py        a method's figures
methods.py      the library's estimators and the controls, and `predict`
table.py        the table and the figure of `docs/two-stage-benchmark.md`
rivals/         one adapter for each other library, each run in an environment of its own
command.py      the command line

truths/, predictions/, results/   what came out of runs of these commands
"""

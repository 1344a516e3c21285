"""Experiments with stagetrace on real data, outside the package: `python -m experiments NAME --data DIR --out DIR`.

__main__.py         the command, and the table of experiments
protocol.py         what those do that compare scores with retraining: prepare, trace, validate, record, draw, write

paper.py            `mnist-frozen`, `cifar-frozen`, `cifar-updated`, `identity-ablation`: the paper's, a row each
resolve.py          `resolve`: stages solved again to strict minima (tiny_chain.py)
choices.py          `choices`: every setting against the same truth
cleansing.py        `cleansing`: the most harmful left out (batched_stages.py: several networks trained at once)
two_finetunings.py  `similarity`, `finetune-size`
misclassified.py    `misclassified`
language/           `language`: the ELMo-shaped network, its texts and stages, what a score costs at the paper's size
word_vectors/       `word-vectors`: skip-gram, a classifier on its vectors, a larger size
transformer_chains/ `bert` and `gpt`: chains of small transformers

What they share: settings.py (what the command line asked for), folders.py, images.py, tasks.py and texts.py (data),
networks.py and image_stages.py (models and their stages), training.py (the one training loop), checkpoints.py (the one
store), estimators.py, records.py (`result.json`), score_plots.py and agreement_plots.py (figures).

pages/              the tables in docs/experiments, filled from results
results/            result.json and figures of the runs that are reported

Needs the extra `stagetrace[experiments]`.
"""

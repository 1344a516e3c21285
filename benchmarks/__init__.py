"""Benchmarks of stagetrace on real data, outside the package: `python -m benchmarks NAME --data DIR --out FILE`.

A module per benchmark; each first counts the work that its subject cannot avoid, then measures beside it:

products.py     a curvature product in gradients, its set-up and what it keeps in memory
solvers.py      products until an answer is right to a given error, Lanczos beside conjugate gradients
scoring.py      scoring all examples in forward passes, by batch size and by number of adjoints
memory.py       seconds and peak memory as the number of examples grows
default.py      seconds of `check` and `score` with no options; and, as `subsets`, what the default's rule costs

fixed.py        what a run pays whatever it asks, and what a plan costs; beside another checkout
startup.py      seconds of `--help` and `--version`

bench/          one, a hundred and a thousand queries beside other libraries. A command of its own (`make bench`)
rivals/         those libraries and this one, each in a process of its own by one protocol
rival.py        kronfluence by that protocol, for `queries` and `ekfac`

two_stage/      do methods foresee what leaving pretraining examples out does after fine-tuning? Commands of its own

language_models.py  the GPT-2 and the classifier of `default`
setting.py      the images, the two networks, the trained weights, and what was asked for
timing.py       interleaved repetitions: ratios that a busy or drifting machine spoils least
report.py       tables, and the JSON file
results/        the JSON files of the runs that are reported

Ratios are medians over repetitions of quotients taken within one repetition, in one process, each part in turn.
Needs the extra `stagetrace[experiments]`.
"""

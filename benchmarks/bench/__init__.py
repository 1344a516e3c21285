"""Beside other libraries: `python -m benchmarks bench --data DIR --envs DIR --work DIR --out FILE`.

One run, one thread, seconds of the processor, a process of its own for each row (`benchmarks/rivals`), and this library
by the same protocol, so that ratios hold. A row that is done is kept in WORK/rows; delete it to have it measured again.

command.py       the command line
environments.py  one environment for each other library
rows.py          what is measured: every row of every part
inputs.py        the files that the processes are given: digits, text, drawn vectors, two stages
images.py, text.py   the trained networks behind them
measured.py      rows as they come, kept
products.py      products with H and G in float64, in plain PyTorch
references.py    exact solutions and scores of the systems that the rows claim to solve
truth.py         the network trained on without groups of examples, in several orders
judged.py        errors, correlations and agreement with retraining of a row
tables.py        the tables, and what was aimed at
figure.py        the curves
"""

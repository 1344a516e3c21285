"""Other libraries on the benchmarks' models, and this one, each in a process of its own by one protocol.

    PYTHON -m benchmarks.rivals.NAME GIVEN OUT METHOD

given.py      what every process is given: a safetensors file of weights, training and query tensors, and settings
process.py    what every process does: measure its phases, write its scores, print one line of JSON
call.py       start such a process and take what it found

kronfluence.py, curvlinops.py, captum.py, pydvl.py, dattri.py, trak.py, bergson.py   a library each, in an environment
              with `requirements/NAME.txt` (`python -m benchmarks bench --envs DIR` makes them)
stagetrace.py this library by the same protocol

Scores have this library's sign: positive = harmful.
"""

"""The comparison with classic collaborative filtering: ``python -m benchmarks.compare``.

`cells` fits every model on every data set and keeps one file for each; `paired` says what their
differences are worth; `costs` measures what sizes cost; `report` and `figures` read the files.
"""

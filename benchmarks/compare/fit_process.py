"""A fit in a process that is forked after the imports, which take longer than many a fit."""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

# torch's compiler comes with its optimizers.
_LOADED = ("benchmarks.compare.fit", "torch._dynamo")


def run(values: Mapping[str, Any], folder: Path, timeout: float) -> dict[str, Any]:
    """The record of one fit, with its wall time.

    Args:
        values: settings, `model` and `dataset` among them.
        folder: where it runs.
        timeout: seconds after which it is killed.

    Raises:
        TimeoutError: it was killed.
        RuntimeError: it failed; what it said.
    """
    record, said = folder / "record.json", folder / "said.txt"
    arguments = [f"--{key}={value}" for key, value in {**values, "result_file": record}.items()]
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(_LOADED))
    start = perf_counter()
    process = context.Process(target=_fit, args=(arguments, folder, said))
    process.start()
    try:
        process.join(timeout)
        is_late = process.is_alive()
    finally:
        process.kill()
        process.join()
    if is_late:
        raise TimeoutError(f"killed after {timeout:.0f} s")
    if process.exitcode:
        raise RuntimeError(said.read_text() if said.is_file() else f"ended by {process.exitcode}")
    return {**json.loads(record.read_text()), "wall_seconds": perf_counter() - start}


def _fit(arguments: Sequence[str], folder: Path, said: Path) -> None:
    """The body of the process; all that it says goes to a file."""
    from benchmarks.compare import fit

    os.chdir(folder)
    output = os.open(said, os.O_WRONLY | os.O_CREAT)
    os.dup2(output, 1)
    os.dup2(output, 2)
    sys.argv = ["fit", *arguments]
    fit.main()

"""A run of the command in a process of its own, as every benchmark makes them."""

import json
import subprocess
import sys
from time import perf_counter

RUN = ("-m", "recbole_llm.cli")


def run(values, folder, program=RUN, *, timeout=None, environment=None):
    """The `result_file` of a run that writes into a folder, with its wall time, imports included.

    Args:
        values: settings, `model` and `dataset` among them.
        folder: where it runs.
        program: what Python is called with.
        timeout: seconds after which it is killed; `subprocess.TimeoutExpired` says so.
        environment: its variables; None: those of this process.
    """
    file = folder / "record.json"
    values = {**values, "result_file": file}
    start = perf_counter()
    done = subprocess.run(
        [sys.executable, *program, *(f"--{key}={value}" for key, value in values.items())],
        cwd=folder,
        check=False,
        capture_output=True,
        text=True,
        timeout=timeout,
        env=environment,
    )
    if done.returncode:
        raise RuntimeError(f"{values}: {done.stderr[-2000:]}")
    return {**json.loads(file.read_text()), "wall_seconds": perf_counter() - start}

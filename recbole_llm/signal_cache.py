"""Fitted signals on disk, so that runs which differ elsewhere fit none of them twice.

An entry is a safetensors file named by all that its tables follow from: the signal's settings and
code, the data, the seed, the device and the libraries. It appears whole or not at all and is never
changed, so any number of processes can share a folder, and a killed one loses the fit at hand.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import inspect
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import scipy.sparse as sp
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from recbole_llm.errors import DataWarning, SettingsError, one_line
from recbole_llm.factors import Factors, Rows
from recbole_llm.settings import RunOptions
from recbole_llm.signals import Signal
from recbole_llm.signals.base import InSteps
from recbole_llm.training_data import TrainingData
from recbole_llm.whole_file import whole_file

_LIBRARIES = ("recbole_llm", "implicit", "lightfm-next", "numpy", "scipy", "torch")
_TABLES = ("users", "items", "known", "offset")
_EXTRA = "extra."
_CSR_PARTS = ("data", "indices", "indptr")


# Called with the number of the step and the tables so far; what it raises ends the fit.
Watch: TypeAlias = Callable[[int, Factors], None]


def fit_cached(
    signal: Signal, data: TrainingData, run: RunOptions, watch: Watch | None = None
) -> tuple[Signal, Factors]:
    """Settle and fit a signal, or take both from ``run.signal_cache``.

    Args:
        signal: what is fitted.
        data: what it learns from.
        run: device, seed, cache.
        watch: sees the tables after each step of a signal that learns in steps.

    Returns:
        The settled signal and its tables.

    Raises:
        SkippedSignal: the data lack what the signal needs.
        SettingsError: the cache cannot be written.
    """
    if run.signal_cache is None:
        return _fit(signal, data, run, watch)
    file = _file(run.signal_cache, signal, data, run)
    if file.is_file():
        try:
            return _read(file, signal)
        except (OSError, SafetensorError, LookupError, ValueError, TypeError) as error:
            warnings.warn(f"{file} is damaged ({one_line(error)}); fitted anew", DataWarning)
    settled, factors = _fit(signal, data, run, watch)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(file) as unfinished:
            _write(unfinished, settled, factors)
    except OSError as error:
        raise SettingsError(f"`signal_cache`: cannot write {file}: {error.strerror}") from error
    return settled, factors


def is_cached(signal: Signal, data: TrainingData, run: RunOptions) -> bool:
    """Whether :func:`fit_cached` will find the signal."""
    return run.signal_cache is not None and _file(run.signal_cache, signal, data, run).is_file()


def _file(folder: str, signal: Signal, data: TrainingData, run: RunOptions) -> Path:
    return Path(folder) / f"{_key(signal, data, run)}.safetensors"


def _fit(
    signal: Signal, data: TrainingData, run: RunOptions, watch: Watch | None
) -> tuple[Signal, Factors]:
    settled = signal.settle(data, run)
    if watch is None or not isinstance(settled, InSteps):
        return settled, settled.fit(data, run)
    for step, tables in enumerate(settled.fit_in_steps(data, run)):
        factors = tables()
        watch(step, factors)
    return settled, factors


def _key(signal: Signal, data: TrainingData, run: RunOptions) -> str:
    """64 hex digits that differ where the tables may."""
    facts = {
        "class": type(signal).__qualname__,
        "code": hashlib.sha256(_source(signal)).hexdigest(),
        "settings": dataclasses.asdict(signal),  # type: ignore[call-overload]
        "run": [run.seed, run.device],
        "versions": [importlib.metadata.version(name) for name in _LIBRARIES],
    }
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    _add_rows(digest, data.interactions)
    if data.age is not None:
        digest.update(data.age.tobytes())
    if signal.uses_text:
        digest.update(json.dumps(data.item_texts).encode())
    if signal.uses_attributes and data.item_attributes is not None:
        _add_rows(digest, data.item_attributes)
    for name in signal.encoders:
        for tables in (data.item_embeddings, data.user_embeddings):
            if name in tables:
                _add_rows(digest, tables[name])
    return digest.hexdigest()


def _source(signal: Signal) -> bytes:
    """The code that fits, its bases' too: a change of it makes other tables."""
    modules = {kind.__module__: kind for kind in type(signal).__mro__ if kind is not object}
    files = (inspect.getsourcefile(kind) for kind in modules.values())
    return b"".join(Path(file).read_bytes() for file in files if file)


def _add_rows(digest: hashlib._Hash, rows: Rows) -> None:
    digest.update(repr(rows.shape).encode())
    if isinstance(rows, np.ndarray):
        digest.update(np.ascontiguousarray(rows).tobytes())
    else:
        for part in _CSR_PARTS:
            digest.update(getattr(rows, part).tobytes())


def _write(file: Path, signal: Signal, factors: Factors) -> None:
    arrays: dict[str, np.ndarray] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    by_columns: list[str] = []
    tables = {name: getattr(factors, name) for name in _TABLES}
    tables |= {f"{_EXTRA}{name}": rows for name, rows in factors.extra.items()}
    for name, rows in tables.items():
        if sp.issparse(rows):
            arrays |= {f"{name}.{part}": getattr(rows, part) for part in _CSR_PARTS}
            shapes[name] = rows.shape
        elif rows.flags.f_contiguous and not rows.flags.c_contiguous:
            # Kept, so that no product copies a wide table once more.
            arrays[name] = rows.T
            by_columns.append(name)
        else:
            arrays[name] = np.ascontiguousarray(rows)
    facts = {
        "settings": dataclasses.asdict(signal),  # type: ignore[call-overload]
        "shapes": shapes,
        "by_columns": by_columns,
    }
    save_file(arrays, file, {name: json.dumps(value) for name, value in facts.items()})


def _read(file: Path, signal: Signal) -> tuple[Signal, Factors]:
    with safe_open(file, framework="numpy") as stored:
        facts = {name: json.loads(value) for name, value in stored.metadata().items()}
        shapes = facts["shapes"]
        tables: dict[str, Any] = {}
        for name, shape in shapes.items():
            parts = tuple(stored.get_tensor(f"{name}.{part}") for part in _CSR_PARTS)
            tables[name] = sp.csr_matrix(parts, shape=tuple(shape))
        for name in stored.keys():  # noqa: SIM118 - it is no mapping
            if name.rpartition(".")[0] not in shapes:
                rows = stored.get_tensor(name)
                tables[name] = rows.T if name in facts["by_columns"] else rows
    settings = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in facts["settings"].items()
    }
    extra = {name.removeprefix(_EXTRA): tables.pop(name) for name in list(tables) if "." in name}
    return type(signal)(**settings), Factors(**tables, extra=extra)

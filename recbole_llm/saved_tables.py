"""A fitted model as a folder of plain arrays: what serving reads, without pickle or data set.

``NAME.tables/`` stands beside RecBole's ``NAME.pth``. Every array is a ``.npy`` file of its own, so
that a large table is mapped and not read; words are JSON lists; ``tables.json`` says what belongs
together, with the size and SHA-256 of every file.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from recbole_llm.atomic_files import new_folder
from recbole_llm.attributes import AttributeCode
from recbole_llm.completion import RidgeMap
from recbole_llm.errors import DataError, did_you_mean, one_line
from recbole_llm.factors import Factors, Index
from recbole_llm.item_form import ItemForm
from recbole_llm.newcomers import LearnedSignal, Newcomers
from recbole_llm.values import Expectation

SUFFIX = ".tables"

_MANIFEST = "tables.json"
_FORMAT = 4
# Below this a file is read at once: a map costs a file handle, and an empty file has none.
_MAPPED_BYTES = 1 << 20
_WORDS = ("user_ids", "item_ids", "item_titles", "item_texts")
# Name in the folder -> attribute.
_ARRAYS = {
    "block": "blocks",
    "known": "known",
    "age": "age",
    "item_form": "item_form",
    "newcomers": "newcomers",
}
_RIDGES = ("ridge", "told_ridge")

Part = TypeVar("Part")


@dataclass(frozen=True, eq=False)
class SavedTables:
    """All that it takes to recommend.

    Attributes:
        blocks: tables whose scores add up to the model's.
        user_ids: n_users ids as the data set's files have them; the first is RecBole's padding.
        item_ids: n_items ids likewise.
        item_titles: n_items titles, "" where an item has none.
        item_texts: n_items texts as the encoders got them, none at all where no text is read.
        item_form: what of a new item's fields is read.
        known: CSR float32 (n_users, n_items), an entry for each pair of the training part: what
            it counts, 1 in the mean, 0 where it counts nothing and is known all the same.
        age: int32 aligned with ``known.data``, as in :class:`~recbole_llm.training_data.History`;
            None where there is no order.
        newcomers: what it takes to give rows to users and items that come later.
        facts: what the tables came from (``model``, ``dataset``, ``seed``, ``settings``, …), fit
            for JSON.
    """

    blocks: tuple[Factors, ...]
    user_ids: tuple[str, ...]
    item_ids: tuple[str, ...]
    item_titles: tuple[str, ...]
    item_texts: tuple[str, ...]
    item_form: ItemForm
    known: sp.csr_matrix
    age: NDArray[np.int32] | None
    newcomers: Newcomers
    facts: Mapping[str, Any]

    @cached_property
    def user_counts(self) -> Index:
        """Training interactions of each user, int64 (n_users,)."""
        return np.diff(self.known.indptr).astype(np.int64)

    @cached_property
    def item_counts(self) -> Index:
        """Training interactions of each item, int64 (n_items,)."""
        return np.bincount(self.known.indices, minlength=self.known.shape[1]).astype(np.int64)


def tables_folder(checkpoint: Path) -> Path:
    """Where the tables of a checkpoint ``NAME.pth`` lie."""
    return checkpoint.with_suffix(SUFFIX)


def write_tables(folder: Path, tables: SavedTables) -> None:
    """Write a folder of tables, whole or not at all; an older one of the name is replaced.

    Args:
        folder: its place.
        tables: what goes into it.

    Raises:
        DataError: the folder cannot be written.
    """
    try:
        with new_folder(folder, overwrite=True) as filling:
            written = {
                name: _write(filling, name, getattr(tables, attribute))
                for name, attribute in _ARRAYS.items()
            }
            for name in _WORDS:
                words = json.dumps(getattr(tables, name))
                (filling / f"{name}.json").write_text(words, encoding="ascii")
            manifest: dict[str, Any] = {
                "format": _FORMAT,
                "facts": dict(tables.facts),
                **written,
                "files": {
                    file.name: {"bytes": file.stat().st_size, "sha256": _sha256(file)}
                    for file in sorted(filling.iterdir())
                },
            }
            manifest["fingerprint"] = _fingerprint(manifest)
            (filling / _MANIFEST).write_text(
                json.dumps(manifest, indent=2) + "\n", encoding="ascii"
            )
    except OSError as error:
        raise DataError(f"cannot write {folder}: {error.strerror or error}") from error


def read_tables(path: Path) -> SavedTables:
    """Read the tables of a checkpoint; large ones are mapped into memory.

    Args:
        path: a ``.pth`` file, of which only the tables beside it are read, or their folder.

    Returns:
        The tables; writing into them leaves the files as they are.

    Raises:
        DataError: there are no tables, or they are damaged or of another version.
    """
    folder = _find_folder(path)
    manifest = _read_manifest(folder)
    try:
        _check_files(folder, manifest["files"])
        words = {name: tuple(json.loads((folder / f"{name}.json").read_bytes())) for name in _WORDS}
        blocks, known, age, form, newcomers = (
            _read(folder, name, manifest[name]) for name in _ARRAYS
        )
        return SavedTables(
            blocks=tuple(_build(Factors, block) for block in blocks),
            known=known,
            age=age,
            item_form=_item_form(form),
            newcomers=_newcomers(newcomers, folder.absolute().parent),
            facts=manifest["facts"],
            **words,
        )
    # All that a file which is not what was written can raise.
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise _damaged(folder, one_line(error)) from error


def _find_folder(path: Path) -> Path:
    folder = path if path.suffix == SUFFIX else tables_folder(path)
    if folder.is_dir():
        return folder
    if not path.exists():
        siblings = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
        raise DataError(f"there is no checkpoint {path}{did_you_mean(path.name, siblings)}")
    if path.suffix == ".pth":
        raise DataError(
            f"{path} has no folder {folder.name} beside it: keep the two together; models that are "
            "not of recbole_llm have none and cannot be served by it"
        )
    raise DataError(f"{path} is no checkpoint; name a .pth file or the {SUFFIX} folder beside it")


def _read_manifest(folder: Path) -> Any:
    file = folder / _MANIFEST
    if not file.is_file():
        raise DataError(f"{folder} is no checkpoint of recbole_llm: it has no {_MANIFEST}")
    try:
        manifest = json.loads(file.read_bytes())
        version = manifest["format"]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise _damaged(folder, f"{_MANIFEST} cannot be read") from error
    if version != _FORMAT:
        raise DataError(
            f"{folder} has format {version}, and this version of recbole_llm reads {_FORMAT}; "
            "train the model again, or use the version that wrote it"
        )
    if manifest.get("fingerprint") != _fingerprint(manifest):
        raise _damaged(folder, f"{_MANIFEST} was changed")
    return manifest


def _check_files(folder: Path, files: Mapping[str, Mapping[str, Any]]) -> None:
    for name, written in files.items():
        file = folder / name
        if not file.is_file():
            raise ValueError(f"{name} is missing")
        size = file.stat().st_size
        if size != written["bytes"]:
            raise ValueError(f"{name} has {size:,} of {written['bytes']:,} bytes")
        if _sha256(file) != written["sha256"]:
            raise ValueError(f"the checksum of {name} is wrong")


def _damaged(folder: Path, reason: str) -> DataError:
    return DataError(f"{folder} is damaged ({reason}); copy it again, or train the model again")


def _write(folder: Path, name: str, value: Any) -> Any:
    """A value as JSON; arrays become files called after their place, so that no field is listed."""
    if isinstance(value, np.ndarray) or sp.issparse(value):
        return _write_rows(folder, name, value)
    if dataclasses.is_dataclass(value):
        value = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        fields = value.items()
        return {"fields": {key: _write(folder, _field(name, key), v) for key, v in fields}}
    if isinstance(value, tuple):
        return [_write(folder, f"{name}{place}", part) for place, part in enumerate(value)]
    return {"value": value}


def _read(folder: Path, name: str, written: Any) -> Any:
    """What :func:`_write` wrote, with a dataclass as the mapping of its fields."""
    if isinstance(written, list):
        return tuple(_read(folder, f"{name}{place}", part) for place, part in enumerate(written))
    if "fields" in written:
        fields = written["fields"].items()
        return {key: _read(folder, _field(name, key), v) for key, v in fields}
    return written["value"] if "value" in written else _read_rows(folder, name, written)


def _field(name: str, key: str) -> str:
    """What a part's files are called; a key may be an encoder's folder."""
    return f"{name}.{key}".replace("/", "%2F")


def _build(kind: type[Part], fields: Mapping[str, Any]) -> Part:
    unknown = fields.keys() - {field.name for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    if unknown:
        raise ValueError(f"it has an unknown table `{min(unknown)}`")
    return kind(**fields)


def _item_form(fields: Mapping[str, Any]) -> ItemForm:
    codes = tuple(_build(AttributeCode, code) for code in fields["attributes"])
    return _build(ItemForm, {**fields, "attributes": codes})


def _newcomers(fields: Mapping[str, Any], place: Path) -> Newcomers:
    signals = []
    for signal in fields["signals"]:
        ridges = {name: signal[name] and _build(RidgeMap, signal[name]) for name in _RIDGES}
        signals.append(_build(LearnedSignal, {**signal, **ridges}))
    # Beside the tables wherever they are by now.
    tuned = {spec: str(place / name) for spec, name in fields.get("tuned", {}).items()}
    expectation = fields.get("expectation") and _build(Expectation, fields["expectation"])
    made = {"signals": tuple(signals), "tuned": tuned, "expectation": expectation}
    return _build(Newcomers, {**fields, **made})


def _write_rows(folder: Path, name: str, rows: Any) -> dict[str, Any]:
    if not sp.issparse(rows):
        np.save(folder / f"{name}.npy", rows, allow_pickle=False)
        return {"shape": rows.shape}
    rows = rows.tocsr()
    for part in ("data", "indices", "indptr"):
        np.save(folder / f"{name}.{part}.npy", getattr(rows, part), allow_pickle=False)
    return {"shape": rows.shape, "sparse": True}


def _read_rows(folder: Path, name: str, written: Mapping[str, Any]) -> Any:
    if not written.get("sparse"):
        return _read_array(folder / f"{name}.npy")
    parts = (_read_array(folder / f"{name}.{part}.npy") for part in ("data", "indices", "indptr"))
    return sp.csr_matrix(tuple(parts), shape=tuple(written["shape"]))


def _read_array(file: Path) -> Any:
    # Copy on write, not read-only: torch warns of arrays that it must not write into.
    mode: Literal["c"] | None = "c" if file.stat().st_size > _MAPPED_BYTES else None
    return np.asarray(np.load(file, mmap_mode=mode, allow_pickle=False))


def _sha256(file: Path) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as content:
        while block := content.read(_MAPPED_BYTES):
            digest.update(block)
    return digest.hexdigest()


def _fingerprint(manifest: Mapping[str, Any]) -> str:
    """One name for all that is in the folder."""
    rest = {key: value for key, value in manifest.items() if key != "fingerprint"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()

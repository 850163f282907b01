"""Rows of texts on disk, so that no text is encoded twice by the same encoder.

A cache is a folder; each encoder has a folder in it, named by its fingerprint, with *segments*:
safetensors files that hold the SHA-256 of some texts and the texts' rows. A segment is named by
its content, appears whole or not at all, and is never changed; so any number of processes can
share a cache, and one that is killed loses a few seconds of work and nothing else. Two that encode
the same texts at once do the work twice and store it twice, until segments are merged.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from recbole_llm.encoders.base import (
    Encoder,
    TextRows,
    distinct_texts,
    spread_rows,
    text_digest,
)
from recbole_llm.errors import DataWarning, SettingsError
from recbole_llm.factors import Table

# A segment is written when one of these is reached: what a kill can cost.
_SEGMENT_TEXTS = 2048
_SEGMENT_SECONDS = 5.0
# Texts between two steps of the progress bar; many batches, since batches of like length are fast.
_PIECE_TEXTS = 256
_MOST_SEGMENTS = 64
_STALE_SECONDS = 3600.0

_FORMAT = "1"
_SEGMENT_SUFFIX = ".safetensors"
_UNFINISHED_SUFFIX = ".tmp"
_DIGEST_BYTES = 32


class EncodeCounts(NamedTuple):
    """How many distinct texts, blank ones apart, were encoded and how many were in the cache."""

    encoded: int
    cached: int


@dataclass(frozen=True, eq=False)
class Segment:
    """Some texts' rows.

    Attributes:
        digests: uint8 (n, 32), the SHA-256 of each text.
        rows: float32 (n, d), the rows.
    """

    digests: NDArray[np.uint8]
    rows: Table

    def keys(self) -> list[bytes]:
        """The digests as hashable values."""
        packed = self.digests.tobytes()
        return [packed[at : at + _DIGEST_BYTES] for at in range(0, len(packed), _DIGEST_BYTES)]


@dataclass(frozen=True)
class EmbeddingCache:
    """A folder of encoded texts, safe to share between processes.

    Attributes:
        folder: made when something is first written.
    """

    folder: Path

    def check_writable(self) -> None:
        """Tries the folder, so that nobody waits for an encoder whose rows cannot be kept.

        Raises:
            SettingsError: nothing can be written there.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            probe = _unfinished(self.folder)
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise _not_writable(self.folder, error) from error

    def load(self, fingerprint: str) -> Segment:
        """All rows that are stored for an encoder.

        A damaged file is removed, with a `DataWarning`.

        Args:
            fingerprint: the encoder's.

        Returns:
            Every text once, sorted by digest; no rows and d = 0 where nothing is stored.
        """
        return _unite(list(self._read_all(fingerprint).values()))

    def save(self, fingerprint: str, segment: Segment) -> Path:
        """Stores rows; they are there, whole, when this returns.

        Args:
            fingerprint: the encoder's.
            segment: at least one row.

        Returns:
            The file that holds them.

        Raises:
            SettingsError: the folder cannot be written.
        """
        folder = self._folder_of(fingerprint)
        checksum = _checksum(segment)
        target = folder / f"{checksum[:32]}{_SEGMENT_SUFFIX}"
        unfinished = _unfinished(folder)
        content = _pack(
            segment, {"format": _FORMAT, "fingerprint": fingerprint, "sha256": checksum}
        )
        try:
            folder.mkdir(parents=True, exist_ok=True)
            try:
                with unfinished.open("xb") as file:
                    file.write(content)
                    file.flush()
                    # Before the name appears: after a power cut it would stand for an empty file.
                    os.fsync(file.fileno())
                os.replace(unfinished, target)
            finally:
                # Only there if writing failed, and a full disk needs the space.
                unfinished.unlink(missing_ok=True)
        except OSError as error:
            raise _not_writable(self.folder, error) from error
        return target

    def tidy(self, fingerprint: str) -> None:
        """Removes what killed writers left behind, and merges segments where they are many.

        Args:
            fingerprint: the encoder's.

        Raises:
            SettingsError: the folder cannot be written.
        """
        folder = self._folder_of(fingerprint)
        _remove_stale(folder)
        if sum(1 for _ in folder.glob(f"*{_SEGMENT_SUFFIX}")) <= _MOST_SEGMENTS:
            return
        merged = self._read_all(fingerprint)
        target = self.save(fingerprint, _unite(list(merged.values())))
        # Only what was read is removed, and only now: another process may have added more.
        for path in merged.keys() - {target}:
            path.unlink(missing_ok=True)

    def _folder_of(self, fingerprint: str) -> Path:
        return self.folder / fingerprint[:32]

    def _read_all(self, fingerprint: str) -> dict[Path, Segment]:
        folder = self._folder_of(fingerprint)
        segments: dict[Path, Segment] = {}
        again = True
        while again:
            again = False
            for path in set(folder.glob(f"*{_SEGMENT_SUFFIX}")) - segments.keys():
                try:
                    segments[path] = _read_segment(path, fingerprint)
                except FileNotFoundError:
                    # Another process has merged it into a file that was not listed yet.
                    again = True
                except _DamagedSegment as error:
                    warnings.warn(
                        f"{path} is damaged ({error}); it is removed and its texts are encoded "
                        "again",
                        DataWarning,
                    )
                    _remove(path, self.folder)
        return segments


def default_folder() -> Path:
    """Where the cache lies if the user names no folder: in the user's cache directory."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "recbole_llm"


def encode_cached(
    encoder: Encoder, texts: Sequence[str], cache: EmbeddingCache | None
) -> tuple[TextRows, EncodeCounts]:
    """The texts' rows, from the cache where it has them.

    Shows a progress bar where the encoder's options ask for one. New rows are stored while the
    work goes on.

    Args:
        encoder: fitted, where it needs that.
        texts: n texts.
        cache: where rows are kept; None keeps none.

    Returns:
        What ``encoder.encode(texts)`` returns, and the counts. Rows that depend on other texts
        (``contextual`` is false) are never kept, and counted as (0, 0).

    Raises:
        SettingsError: the cache cannot be written (before anything is encoded), or the encoder's
            model cannot be loaded.
        ValueError: a contextual encoder returns no dense, finite float32 (n, d).
    """
    distinct, places = distinct_texts(texts)
    if not encoder.contextual or not distinct:
        return encoder.encode(texts), EncodeCounts(0, 0)
    if cache is None:
        united = _unite(list(_encode_pieces(encoder, distinct)))
        counts = EncodeCounts(encoded=len(distinct), cached=0)
    else:
        united, counts = _complete(encoder, distinct, cache)
    row_of = {key: row for row, key in enumerate(united.keys())}
    chosen = [row_of[text_digest(text)] for text in distinct]
    return spread_rows(united.rows[chosen], places), counts


def _complete(
    encoder: Encoder, distinct: list[str], cache: EmbeddingCache
) -> tuple[Segment, EncodeCounts]:
    """The cache's rows, after those of missing texts were added."""
    fingerprint = encoder.fingerprint()
    stored = cache.load(fingerprint)
    known = set(stored.keys())
    missing = [text for text in distinct if text_digest(text) not in known]
    parts = [stored]
    if missing:
        cache.check_writable()
        for segment in _gather(_encode_pieces(encoder, missing)):
            cache.save(fingerprint, segment)
            parts.append(segment)
        cache.tidy(fingerprint)
    counts = EncodeCounts(encoded=len(missing), cached=len(distinct) - len(missing))
    return _unite(parts), counts


def _encode_pieces(encoder: Encoder, texts: list[str]) -> Iterator[Segment]:
    """Encodes some texts at a time, the longest first: memory runs out at once or never."""
    from tqdm import tqdm

    ordered = sorted(texts, key=len, reverse=True)
    with tqdm(
        total=len(ordered), desc="Encoding texts", disable=not encoder.options.progress
    ) as bar:
        for start in range(0, len(ordered), _PIECE_TEXTS):
            piece = ordered[start : start + _PIECE_TEXTS]
            rows = _checked(encoder, encoder.encode(piece), len(piece))
            digests = np.frombuffer(b"".join(map(text_digest, piece)), dtype=np.uint8)
            yield Segment(digests.reshape(-1, _DIGEST_BYTES), rows)
            bar.update(len(piece))


def _gather(pieces: Iterator[Segment]) -> Iterator[Segment]:
    """Puts pieces together until a segment is worth a file."""
    gathered: list[Segment] = []
    since = time.monotonic()
    for piece in pieces:
        gathered.append(piece)
        n_texts = sum(len(segment.rows) for segment in gathered)
        if n_texts >= _SEGMENT_TEXTS or time.monotonic() - since >= _SEGMENT_SECONDS:
            yield _unite(gathered)
            gathered, since = [], time.monotonic()
    if gathered:
        yield _unite(gathered)


def _unite(segments: list[Segment]) -> Segment:
    """All rows, sorted by digest; of a text that is in several segments, the first row."""
    filled = [segment for segment in segments if len(segment.rows)]
    if not filled:
        return Segment(np.empty((0, _DIGEST_BYTES), np.uint8), np.empty((0, 0), np.float32))
    digests = np.concatenate([segment.digests for segment in filled])
    # A view as opaque bytes: numpy would strip zero bytes from the ends of strings.
    packed = np.ascontiguousarray(digests).view(f"V{_DIGEST_BYTES}").ravel()
    _, first = np.unique(packed, return_index=True)
    rows = np.concatenate([segment.rows for segment in filled])
    return Segment(digests[first], rows[first])


def _checked(encoder: Encoder, rows: TextRows, n_texts: int) -> Table:
    """Rows that may be kept for ever."""
    if (
        not isinstance(rows, np.ndarray)
        or rows.dtype != np.float32
        or rows.ndim != 2
        or len(rows) != n_texts
        or not np.isfinite(rows).all()
    ):
        raise ValueError(
            f"encoder `{encoder.name}` must return finite, dense float32 rows ({n_texts}, d), got "
            f"{type(rows).__name__} {getattr(rows, 'dtype', '')} {getattr(rows, 'shape', '')}"
        )
    return rows


class _DamagedSegment(Exception):
    """A segment is not what was written."""


def _pack(segment: Segment, metadata: dict[str, str]) -> bytes:
    from safetensors.numpy import save

    tensors: dict[str, NDArray[Any]] = {
        "digests": np.ascontiguousarray(segment.digests),
        "rows": np.ascontiguousarray(segment.rows),
    }
    return bytes(save(tensors, metadata=metadata))


def _read_segment(path: Path, fingerprint: str) -> Segment:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np") as file:
            metadata = file.metadata() or {}
            segment = Segment(file.get_tensor("digests"), file.get_tensor("rows"))
    except SafetensorError as error:
        raise _DamagedSegment(str(error).splitlines()[0]) from error
    if metadata.get("format") != _FORMAT or metadata.get("fingerprint") != fingerprint:
        raise _DamagedSegment("it is of another format or encoder")
    if metadata.get("sha256") != _checksum(segment):
        raise _DamagedSegment("the checksum is wrong")
    return segment


def _checksum(segment: Segment) -> str:
    digest = hashlib.sha256(str(segment.rows.shape).encode())
    digest.update(np.ascontiguousarray(segment.digests).data)
    digest.update(np.ascontiguousarray(segment.rows).data)
    return digest.hexdigest()


def _unfinished(folder: Path) -> Path:
    return folder / f"{secrets.token_hex(8)}{_UNFINISHED_SUFFIX}"


def _remove_stale(folder: Path) -> None:
    """Removes unfinished files of writers that are long dead; a living one needs seconds."""
    for path in folder.glob(f"*{_UNFINISHED_SUFFIX}"):
        try:
            if time.time() - path.stat().st_mtime > _STALE_SECONDS:
                path.unlink()
        except FileNotFoundError:
            # Finished or removed meanwhile.
            continue


def _remove(path: Path, cache_folder: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise _not_writable(cache_folder, error) from error


def _not_writable(folder: Path, error: OSError) -> SettingsError:
    return SettingsError(
        f"`embedding_cache`: cannot write to the folder {folder} ({error.strerror or error}); "
        "name another folder, or `none` for no cache"
    )

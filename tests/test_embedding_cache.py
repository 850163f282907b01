import hashlib
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse as sp

from recbole_llm import embedding_cache
from recbole_llm.embedding_cache import (
    EmbeddingCache,
    EncodeCounts,
    Segment,
    default_folder,
    encode_cached,
)
from recbole_llm.encoders import EncoderOptions, build
from recbole_llm.errors import DataWarning, SettingsError

QUIET = EncoderOptions(progress=False)
TEXTS = [f"text number {number}" for number in range(40)]


@dataclass
class DigestEncoder:
    """A deterministic stand-in: four numbers of a text's digest. Remembers what it encoded."""

    options: EncoderOptions = QUIET
    kind: str = "digest"
    seconds_per_text: float = 0.0
    encoded: list[str] = field(default_factory=list)

    name = "digest"
    contextual = True

    def fingerprint(self):
        return hashlib.sha256(self.kind.encode()).hexdigest()

    def fit(self, texts):
        return self

    def reads(self, text):
        return text

    def encode(self, texts):
        self.encoded.extend(texts)
        time.sleep(self.seconds_per_text * len(texts))
        rows = np.zeros((len(texts), 4), dtype=np.float32)
        for row, text in zip(rows, texts, strict=True):
            if text.strip():
                row[:] = np.frombuffer(hashlib.sha256(text.encode()).digest()[:4], np.uint8) + 1.0
                row /= np.linalg.norm(row)
        return rows


@pytest.fixture
def cache(tmp_path):
    return EmbeddingCache(tmp_path / "cache")


def segments(cache: EmbeddingCache) -> list[Path]:
    return sorted(cache.folder.glob("*/*.safetensors"))


def unfinished(cache: EmbeddingCache) -> list[Path]:
    return sorted(cache.folder.rglob("*.tmp"))


def assert_rows_are_right(rows, texts):
    assert np.array_equal(rows, DigestEncoder().encode(texts))


def test_a_second_run_encodes_nothing_and_gives_the_same_rows(cache):
    texts = [*TEXTS, "", *TEXTS[:5], "  "]
    first, counts = encode_cached(DigestEncoder(), texts, cache)
    assert counts == EncodeCounts(encoded=40, cached=0)
    assert_rows_are_right(first, texts)
    encoder = DigestEncoder()
    second, counts = encode_cached(encoder, texts[::-1], cache)
    assert counts == EncodeCounts(encoded=0, cached=40)
    assert encoder.encoded == []
    assert np.array_equal(second, first[::-1])


def test_ten_more_texts_encode_ten(cache):
    encode_cached(DigestEncoder(), TEXTS[:30], cache)
    encoder = DigestEncoder()
    rows, counts = encode_cached(encoder, TEXTS, cache)
    assert counts == EncodeCounts(encoded=10, cached=30)
    assert sorted(encoder.encoded) == sorted(TEXTS[30:])
    assert_rows_are_right(rows, TEXTS)


def test_encoders_do_not_share_rows(cache):
    encode_cached(DigestEncoder(), TEXTS, cache)
    _, counts = encode_cached(DigestEncoder(kind="other"), TEXTS, cache)
    assert counts == EncodeCounts(encoded=40, cached=0)


def test_without_a_cache_each_text_is_encoded_once(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    encoder = DigestEncoder()
    rows, counts = encode_cached(encoder, [*TEXTS, "", *TEXTS], None)
    assert counts == EncodeCounts(encoded=40, cached=0)
    assert sorted(encoder.encoded) == sorted(TEXTS)
    assert_rows_are_right(rows, [*TEXTS, "", *TEXTS])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("texts", [[], ["", " "]])
def test_blank_texts_alone_need_no_cache(cache, texts):
    rows, counts = encode_cached(DigestEncoder(), texts, cache)
    assert counts == EncodeCounts(0, 0)
    assert rows.shape == (len(texts), 4)
    assert not cache.folder.exists()


def test_rows_that_depend_on_other_texts_are_never_kept(cache):
    lexical = build("lexical", QUIET).fit(TEXTS)
    rows, counts = encode_cached(lexical, TEXTS, cache)
    assert counts == EncodeCounts(0, 0)
    assert (rows != lexical.encode(TEXTS)).nnz == 0
    assert not cache.folder.exists()


def test_the_bundled_model_is_not_loaded_when_all_rows_are_known(cache):
    texts = ["red shirt", "", "blue cap " * 400, "red shirt"]
    first, counts = encode_cached(build("bert", QUIET), texts, cache)
    assert counts == EncodeCounts(encoded=2, cached=0)
    np.testing.assert_allclose(first, build("bert", QUIET).encode(texts), atol=1e-5)
    bert = build("bert", QUIET)
    second, counts = encode_cached(bert, texts, cache)
    assert counts == EncodeCounts(encoded=0, cached=2)
    assert np.array_equal(first, second)
    assert "_network" not in vars(bert)


def truncate(content: bytes) -> bytes:
    return content[: len(content) // 2]


def empty(content: bytes) -> bytes:
    return b""


def flip_a_row_byte(content: bytes) -> bytes:
    return content[:-1] + bytes([content[-1] ^ 1])


def overwrite_the_head(content: bytes) -> bytes:
    return b"\xff" * 16 + content[16:]


def name_another_encoder(content: bytes) -> bytes:
    ours = DigestEncoder().fingerprint().encode()
    return content.replace(ours, ours[:32] + b"0" * 32)


@pytest.mark.parametrize(
    "damage", [truncate, empty, flip_a_row_byte, overwrite_the_head, name_another_encoder]
)
def test_a_damaged_segment_is_named_removed_and_encoded_again(cache, damage):
    encode_cached(DigestEncoder(), TEXTS[:25], cache)
    (broken,) = segments(cache)
    encode_cached(DigestEncoder(), TEXTS, cache)
    broken.write_bytes(damage(broken.read_bytes()))
    with pytest.warns(DataWarning, match="removed and its texts are encoded again") as caught:
        rows, counts = encode_cached(DigestEncoder(), TEXTS, cache)
    assert len(caught) == 1
    assert str(broken) in str(caught[0].message)
    assert "\n" not in str(caught[0].message)
    assert counts == EncodeCounts(encoded=25, cached=15)
    assert_rows_are_right(rows, TEXTS)
    assert encode_cached(DigestEncoder(), TEXTS, cache)[1] == EncodeCounts(encoded=0, cached=40)


def test_an_unwritable_folder_is_reported_before_anything_is_encoded(tmp_path):
    # Below a regular file nobody can write, not even root.
    (tmp_path / "file").write_text("")
    cache = EmbeddingCache(tmp_path / "file" / "cache")
    encoder = DigestEncoder()
    with pytest.raises(SettingsError, match="`embedding_cache`: cannot write") as caught:
        encode_cached(encoder, TEXTS, cache)
    assert str(cache.folder) in str(caught.value)
    assert encoder.encoded == []


def test_a_full_disk_is_one_line_and_leaves_nothing_unfinished(cache, monkeypatch):
    def no_space(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", no_space)
    with pytest.raises(SettingsError, match=r"cannot write .*No space left"):
        encode_cached(DigestEncoder(), TEXTS, cache)
    assert segments(cache) == unfinished(cache) == []


def test_long_work_is_stored_in_steps(cache, monkeypatch):
    monkeypatch.setattr(embedding_cache, "_PIECE_TEXTS", 4)
    monkeypatch.setattr(embedding_cache, "_SEGMENT_TEXTS", 8)
    encode_cached(DigestEncoder(), TEXTS, cache)
    assert len(segments(cache)) == 5
    monkeypatch.setattr(embedding_cache, "_SEGMENT_SECONDS", 0.0)
    encode_cached(DigestEncoder(kind="slow"), TEXTS, cache)
    assert len(segments(cache)) == 15


def test_an_error_in_the_middle_keeps_what_was_encoded(cache, monkeypatch):
    monkeypatch.setattr(embedding_cache, "_PIECE_TEXTS", 10)
    monkeypatch.setattr(embedding_cache, "_SEGMENT_TEXTS", 10)

    class Failing(DigestEncoder):
        def encode(self, texts):
            if len(self.encoded) == 20:
                raise KeyboardInterrupt
            return super().encode(texts)

    with pytest.raises(KeyboardInterrupt):
        encode_cached(Failing(), TEXTS, cache)
    assert encode_cached(DigestEncoder(), TEXTS, cache)[1] == EncodeCounts(encoded=20, cached=20)


def test_many_small_segments_are_merged_into_one(cache, monkeypatch):
    monkeypatch.setattr(embedding_cache, "_MOST_SEGMENTS", 5)
    for count in range(1, 6):
        encode_cached(DigestEncoder(), TEXTS[: 2 * count], cache)
    assert len(segments(cache)) == 5
    encode_cached(DigestEncoder(), TEXTS, cache)
    assert len(segments(cache)) == 1
    rows, counts = encode_cached(DigestEncoder(), TEXTS, cache)
    assert counts == EncodeCounts(encoded=0, cached=40)
    assert_rows_are_right(rows, TEXTS)


def test_merging_keeps_a_segment_that_holds_everything_already(cache, monkeypatch):
    monkeypatch.setattr(embedding_cache, "_MOST_SEGMENTS", 1)
    fingerprint = DigestEncoder().fingerprint()
    encode_cached(DigestEncoder(), TEXTS, cache)
    whole = cache.load(fingerprint)
    cache.save(fingerprint, Segment(whole.digests[:3], whole.rows[:3]))
    cache.tidy(fingerprint)
    assert len(segments(cache)) == 1
    assert np.array_equal(cache.load(fingerprint).rows, whole.rows)


def test_a_segment_that_is_merged_away_under_a_reader_is_no_error(cache, monkeypatch):
    fingerprint = DigestEncoder().fingerprint()
    for count in (10, 20, 40):
        encode_cached(DigestEncoder(), TEXTS[:count], cache)
    read = embedding_cache._read_segment
    listed = segments(cache)

    def merge_first(path, of):
        if listed:
            monkeypatch.setattr(embedding_cache, "_read_segment", read)
            monkeypatch.setattr(embedding_cache, "_MOST_SEGMENTS", 1)
            listed.clear()
            EmbeddingCache(cache.folder).tidy(fingerprint)
        return read(path, of)

    monkeypatch.setattr(embedding_cache, "_read_segment", merge_first)
    assert encode_cached(DigestEncoder(), TEXTS, cache)[1] == EncodeCounts(encoded=0, cached=40)
    assert len(segments(cache)) == 1


def test_unfinished_files_of_dead_writers_go_and_those_of_living_ones_stay(cache):
    encode_cached(DigestEncoder(), TEXTS[:1], cache)
    folder = segments(cache)[0].parent
    old, new = folder / "old.tmp", folder / "new.tmp"
    for path in (old, new):
        path.write_bytes(b"half")
    os.utime(old, (time.time() - 7200,) * 2)
    encode_cached(DigestEncoder(), TEXTS, cache)
    assert unfinished(cache) == [new]


@pytest.mark.parametrize(
    "rows",
    [
        np.zeros((40, 4)),
        np.zeros((39, 4), np.float32),
        np.zeros(40, np.float32),
        np.full((40, 4), np.nan, np.float32),
        sp.csr_matrix((40, 4), dtype=np.float32),
    ],
)
def test_rows_that_must_not_be_kept_are_refused(cache, rows, monkeypatch):
    encoder = DigestEncoder()
    monkeypatch.setattr(encoder, "encode", lambda texts: rows)
    with pytest.raises(ValueError, match=r"encoder `digest` must return finite, dense float32"):
        encode_cached(encoder, TEXTS, cache)
    assert segments(cache) == []


def test_a_progress_bar_is_shown_where_the_options_ask_for_it(cache, capfd):
    encode_cached(DigestEncoder(), TEXTS, cache)
    assert capfd.readouterr() == ("", "")
    encode_cached(DigestEncoder(EncoderOptions(), kind="loud"), TEXTS, cache)
    shown = capfd.readouterr().err
    assert "Encoding texts: 100%" in shown
    assert "40/40" in shown


def test_the_default_folder_is_in_the_users_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_folder() == tmp_path / "recbole_llm"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_folder() == tmp_path / ".cache" / "recbole_llm"


# --- real processes -------------------------------------------------------------------------------


def start(code: str, folder: Path) -> subprocess.Popen:
    """Runs code in a process of its own, with this module's names."""
    here = Path(__file__)
    setup = (
        f"import os, signal, sys; sys.path[:0] = {[str(here.parent), str(here.parents[1])]!r}\n"
        f"from {here.stem} import *\n"
        f"cache = EmbeddingCache(Path({str(folder)!r}))\n"
    )
    return subprocess.Popen([sys.executable, "-c", setup + code], stdout=subprocess.PIPE, text=True)


def test_two_processes_share_one_cache_and_leave_it_whole(cache):
    texts = [f"text {number}" for number in range(1200)]
    code = (
        "embedding_cache._PIECE_TEXTS, embedding_cache._SEGMENT_TEXTS = 10, 20\n"
        "embedding_cache._MOST_SEGMENTS = 3\n"
        "texts = [f'text {number}' for number in range(1200)]\n"
        "for end in range(100, 1201, 100):\n"
        "    encoder = DigestEncoder(seconds_per_text=2e-4)\n"
        "    rows, counts = encode_cached(encoder, texts[:end], cache)\n"
        "    assert np.array_equal(rows, encoder.encode(texts[:end]))\n"
    )
    processes = [start(code, cache.folder) for _ in range(2)]
    assert [process.wait(timeout=60) for process in processes] == [0, 0]
    rows, counts = encode_cached(DigestEncoder(), texts, cache)
    assert counts == EncodeCounts(encoded=0, cached=1200)
    assert_rows_are_right(rows, texts)
    assert unfinished(cache) == []


def test_a_process_killed_while_it_writes_loses_that_segment_alone(cache):
    code = (
        "embedding_cache._PIECE_TEXTS, embedding_cache._SEGMENT_TEXTS = 10, 10\n"
        "synced = []\n"
        "def die_in_the_third(descriptor):\n"
        "    synced.append(descriptor)\n"
        "    if len(synced) == 3:\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "os.fsync = die_in_the_third\n"
        "encode_cached(DigestEncoder(), TEXTS, cache)\n"
    )
    assert start(code, cache.folder).wait(timeout=60) == -signal.SIGKILL
    assert len(unfinished(cache)) == 1
    rows, counts = encode_cached(DigestEncoder(), TEXTS, cache)
    assert counts == EncodeCounts(encoded=20, cached=20)
    assert_rows_are_right(rows, TEXTS)


def test_a_process_killed_at_any_time_leaves_a_whole_cache(cache):
    code = (
        "embedding_cache._PIECE_TEXTS, embedding_cache._SEGMENT_TEXTS = 1, 1\n"
        "print('ready', flush=True)\n"
        "encode_cached(DigestEncoder(), [f'text {number}' for number in range(10**6)], cache)\n"
    )
    process = start(code, cache.folder)
    assert process.stdout.readline() == "ready\n"
    deadline = time.monotonic() + 60
    while len(segments(cache)) < 5 and time.monotonic() < deadline:
        time.sleep(0.01)
    process.kill()
    process.wait(timeout=60)
    texts = [f"text {number}" for number in range(10**6 - 5, 10**6)]
    rows, counts = encode_cached(DigestEncoder(), texts, cache)
    assert sum(counts) == 5
    assert_rows_are_right(rows, texts)
    assert len(cache.load(DigestEncoder().fingerprint()).rows) >= 5

"""Fitted signals on disk."""

import dataclasses

import numpy as np
import pytest
import scipy.sparse as sp

from recbole_llm.errors import DataWarning, SettingsError
from recbole_llm.settings import RunOptions
from recbole_llm.signal_cache import fit_cached
from recbole_llm.signals import SIGNALS
from recbole_llm.testing.signals import ENCODER, small_data
from recbole_llm.training_data import without_items


@pytest.fixture
def run(tmp_path):
    return RunOptions(seed=7, progress=False, signal_cache=str(tmp_path / "cache"))


def variant(name):
    return next(iter(SIGNALS[name]().variants(name, [ENCODER]).values()))


def same(one, other):
    assert one.extra.keys() == other.extra.keys()
    tables = [
        [f.users, f.items, f.known, f.offset, *(f.extra[name] for name in one.extra)]
        for f in (one, other)
    ]
    for a, b in zip(*tables, strict=True):
        assert sp.issparse(a) == sp.issparse(b)
        np.testing.assert_array_equal(*(m.toarray() if sp.issparse(m) else m for m in (a, b)))


@pytest.mark.parametrize("name", SIGNALS)
def test_what_comes_back_is_what_was_fitted(name, run, monkeypatch):
    data, signal = small_data(), variant(name)
    settled, fitted = fit_cached(signal, data, run)
    same(signal.settle(data, run).fit(data, run), fitted)
    monkeypatch.setattr(type(signal), "fit", None)
    again, kept = fit_cached(signal, data, run)
    assert again == settled
    same(kept, fitted)


@pytest.mark.parametrize("name", SIGNALS)
def test_other_data_seeds_and_settings_are_fitted_anew(name, run, tmp_path):
    data, signal = small_data(), variant(name)
    held = np.zeros(data.n_items, dtype=bool)
    held[5] = True
    for settings, part, options in [
        (signal, data, run),
        (signal, without_items(data, held), run),
        (signal, data, dataclasses.replace(run, seed=8)),
    ]:
        fit_cached(settings, part, options)
    assert len(list((tmp_path / "cache").iterdir())) == 3


def test_other_texts_are_fitted_anew_where_a_signal_reads_them(run, tmp_path):
    data = small_data()
    other = dataclasses.replace(data, item_texts=data.item_texts[::-1])
    for name, n_files in (("als", 1), ("lightfm", 3)):
        for part in (data, other):
            fit_cached(variant(name), part, run)
        assert len(list((tmp_path / "cache").iterdir())) == n_files


def test_a_damaged_file_is_fitted_anew_and_mended(run, tmp_path):
    data, signal = small_data(), variant("als")
    _, fitted = fit_cached(signal, data, run)
    (file,) = (tmp_path / "cache").iterdir()
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.warns(DataWarning, match="damaged"):
        same(fit_cached(signal, data, run)[1], fitted)
    same(fit_cached(signal, data, run)[1], fitted)


def test_a_folder_that_cannot_be_written_is_named():
    run = RunOptions(progress=False, signal_cache="/dev/null/cache")
    with pytest.raises(SettingsError, match="`signal_cache`: cannot write"):
        fit_cached(variant("popularity"), small_data(), run)

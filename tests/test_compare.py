"""The comparison of benchmarks/compare: statistics, evaluator, cells, report."""

import itertools
import json
import subprocess
import sys
from pathlib import Path
from time import perf_counter
from types import SimpleNamespace

import numpy as np
import pytest
import scipy.sparse
import scipy.stats
import torch
from recbole.evaluator.metrics import AveragePopularity, GiniIndex, ItemCoverage

from benchmarks import readme
from benchmarks.compare import (
    cells,
    data,
    externals,
    fit_process,
    grid,
    growth,
    measure,
    paired,
    report,
    text_stand_ins,
)
from benchmarks.compare.__main__ import cells_of, main, parse
from benchmarks.compare.collected import Collected
from benchmarks.timed_training import end_by
from recbole_llm.cold_metrics import RankingCollector
from recbole_llm.encoders import EncoderOptions
from recbole_llm.testing.encoders import check_encoder

ROOT = Path(__file__).parents[1]


# Statistics


def naive_interval(table, n_draws):
    """Draw seeds and users, and take the mean of what they have together."""
    n_seeds, n_users = table.shape
    seed_rng, user_rng = np.random.default_rng(1), np.random.default_rng(2)
    seed_draws = seed_rng.integers(n_seeds, size=(n_draws, n_seeds), dtype=np.int32)
    user_draws = user_rng.integers(n_users, size=(n_draws, n_users), dtype=np.int32)
    means = []
    for seeds, users in zip(seed_draws, user_draws, strict=True):
        values = [table[s, u] for s in seeds for u in users if not np.isnan(table[s, u])]
        means.append(sum(values) / len(values))
    return np.percentile(means, [2.5, 97.5])


def test_the_interval_is_that_of_drawing_seeds_and_users():
    table = np.random.default_rng(0).normal(0.1, 1, (3, 12))
    table[1, 4] = table[0, 7] = np.nan
    assert paired.interval(table, 200) == pytest.approx(tuple(naive_interval(table, 200)))


def test_with_one_seed_it_is_the_plain_bootstrap_over_users():
    values = np.random.default_rng(5).normal(0.2, 1, 200)
    ours = paired.interval(values[None, :])
    theirs = scipy.stats.bootstrap(
        (values,), np.mean, n_resamples=4000, method="percentile", rng=np.random.default_rng(0)
    ).confidence_interval
    assert ours == pytest.approx(tuple(theirs), abs=0.02)


def test_the_flip_test_is_near_the_exact_one():
    values = np.array([0.5, -0.1, 0.3, 0.8, -0.4, 0.2, 0.6, 0.1])
    sums = [
        abs(sum(s * v for s, v in zip(signs, values, strict=True)))
        for signs in itertools.product((1, -1), repeat=len(values))
    ]
    exact = np.mean([total >= abs(values.sum()) - 1e-12 for total in sums])
    theirs = scipy.stats.permutation_test(
        (values,), np.mean, permutation_type="samples", n_resamples=np.inf
    ).pvalue
    assert exact == pytest.approx(theirs)
    assert paired.flip_test(values[None, :]) == pytest.approx(exact, abs=0.015)


def test_a_users_differences_flip_together():
    """Ten copies of a user in ten seeds are no ten users."""
    values = np.array([0.5, -0.1, 0.3, 0.8, -0.4, 0.2])
    once = paired.flip_test(values[None, :])
    assert paired.flip_test(np.tile(values, (10, 1))) == pytest.approx(once, abs=0.015)


def test_no_difference_is_no_win_and_no_loss():
    table = np.zeros((2, 50))
    difference = paired.compare(table, 0.3)
    assert (difference.low, difference.high, difference.p) == (0, 0, 1)
    assert paired.verdict(difference, 1.0) == "open"


def naive_holm(values):
    found = {}
    largest = 0.0
    for rank, place in enumerate(sorted(range(len(values)), key=lambda i: values[i])):
        largest = max(largest, (len(values) - rank) * values[place])
        found[place] = min(1.0, largest)
    return [found[place] for place in range(len(values))]


def test_holms_correction():
    assert paired.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    values = list(np.random.default_rng(1).random(20) ** 3)
    assert paired.holm(values) == pytest.approx(naive_holm(values))
    assert paired.holm([]) == []


@pytest.mark.parametrize(
    ("low", "high", "corrected", "word"),
    [
        (0.01, 0.02, 0.01, "win"),
        (0.01, 0.02, 0.06, "open"),
        (-0.01, 0.02, 0.01, "open"),
        (-0.02, -0.01, 0.9, "loss"),
    ],
)
def test_a_win_needs_its_interval_and_the_corrected_test(low, high, corrected, word):
    difference = paired.Difference((low + high) / 2, low, high, 0.01, 0.1, 1, 9)
    assert paired.verdict(difference, corrected) == word


def test_differences_are_of_the_same_users_of_the_same_seed():
    ours = {1: (np.array([1, 3]), np.array([0.5, 0.4])), 2: (np.array([1]), np.array([0.1]))}
    theirs = {1: (np.array([1, 3]), np.array([0.2, 0.4])), 3: (np.array([9]), np.array([1.0]))}
    table, level = paired.differences(ours, theirs)
    np.testing.assert_allclose(table, [[0.3, 0.0]])
    assert level == pytest.approx(0.3)
    with pytest.raises(ValueError, match="different users"):
        paired.differences(ours, {1: (np.array([1, 4]), np.array([0.2, 0.4]))})


# Evaluator


def test_coverage_gini_and_popularity_are_recboles():
    rng = np.random.default_rng(3)
    counts = np.concatenate([[0], rng.integers(0, 50, 40)])
    top = np.array([rng.permutation(np.arange(1, 25))[:10] for _ in range(30)])
    found = measure.spread_of(top, counts, 10)
    matrix = torch.from_numpy(top).numpy()
    assert found["coverage@10"] == pytest.approx(ItemCoverage.get_coverage(None, matrix, 40))
    assert found["gini@10"] == pytest.approx(GiniIndex.get_gini(None, matrix, 40))
    popularity = AveragePopularity.get_pop(None, matrix, dict(enumerate(counts)))
    assert found["popularity@10"] == pytest.approx(popularity.mean())


def test_ndcg_by_warmth_counts_the_wanted_items_of_a_bucket():
    counts = np.array([0, 0, 2, 5, 200, 200, 0])
    scores = torch.tensor([[-np.inf, 1, 2, 3, 9, 8, 0], [-np.inf, 9, 8, 1, 2, 3, 0]])
    rows, items = torch.tensor([0, 0, 1]), torch.tensor([4, 3, 1])
    collector = RankingCollector(np.array([0, 3, 3]), counts > 0, items.numpy(), k=20, seed=0)
    users = torch.tensor([2, 1])
    collector.add(scores, users, rows, items)
    wanted = np.unique(rows.numpy() * 7 + items.numpy())
    found = measure.Evaluation(users.numpy(), collector.ranking(), wanted, counts, 1.0)
    # Cold item 1 is first for user 1; 3 is third and 4 first for user 2.
    assert found.by_warmth() == pytest.approx([1.0, None, 0.5, None, None, 1.0], nan_ok=True)
    asked, values = found.per_user("all")
    assert asked.tolist() == [1, 2]
    ideal = 1 + 1 / np.log2(3)
    assert values == pytest.approx([1.0, (1 + 1 / np.log2(4)) / ideal])


def test_the_size_of_a_model_is_that_of_its_arrays():
    import scipy.sparse as sp

    matrix = sp.csr_matrix(np.eye(3, dtype=np.float32))
    value = {"a": [np.zeros(4)], "b": (torch.zeros(2, 2),), "c": matrix, "d": "text", "e": None}
    assert measure.n_bytes(value) == 32 + 16 + 3 * 4 + 3 * 4 + 4 * 4
    assert measure.n_bytes(matrix.tolil()) == 36


# Growth


def real_set():
    rng = np.random.default_rng(0)
    users = np.repeat(np.arange(30), rng.integers(1, 12, 30))
    items = np.minimum(rng.geometric(0.2, len(users)) - 1, 19)
    pairs = np.unique(np.stack([users, items]), axis=1)
    names, place = np.unique(pairs[1], return_inverse=True)
    texts = [f"word{item} colour{item % 3} thing" for item in names]
    return growth.Real(pairs[0], place, texts)


def test_a_grown_set_keeps_activity_popularity_and_texts():
    real = real_set()
    size = 20 * len(real.users)
    users, items, texts = growth.grow(real, size, seed=4)
    assert len(users) == pytest.approx(size, rel=0.02)
    assert len({*zip(users, items, strict=True)}) == len(users)
    activity, grown = np.bincount(real.users), np.bincount(users)
    np.testing.assert_array_equal(np.sort(np.repeat(activity, 20)), np.sort(grown))
    popularity, counted = np.bincount(real.items), np.bincount(items, minlength=len(texts))
    assert len(texts) == 20 * len(real.texts)
    np.testing.assert_array_equal(np.sort(np.repeat(popularity, 20)), np.sort(counted))
    words = {word for text in real.texts for word in text.split()}
    assert {word for text in texts for word in text.split()} <= words
    again = growth.grow(real, size, seed=4)
    assert again[2] == texts
    np.testing.assert_array_equal(again[1], items)


def test_a_set_does_not_shrink():
    real = real_set()
    users, items, _ = growth.grow(real, len(real.users), seed=4)
    np.testing.assert_array_equal(np.sort(np.bincount(users)), np.sort(np.bincount(real.users)))
    np.testing.assert_array_equal(np.sort(np.bincount(items)), np.sort(np.bincount(real.items)))
    with pytest.raises(ValueError, match="are fewer than"):
        growth.grow(real, len(real.users) - 1, seed=4)


# Cells


@pytest.fixture
def fake_fits(monkeypatch):
    """Fits that cost nothing: better settings, and models, are known. Gives what was fitted."""
    done = []

    def fit(self, cell, settings, seconds, folder):
        done.append((cell, settings))
        if cell.model == "EASE":
            raise cells.FitFailed("no more memory")
        rng = np.random.default_rng(cell.seed)
        value = np.clip(rng.random(40) * 0.5 + 0.2 * (cell.model == grid.OURS), 0, 1)
        metrics = {f"all_{m}@{k}": float(value.mean()) for k in (10, 20) for m in measure.METRICS}
        record = {
            "seconds": {"fit": 1.0, "load": 0.5, "encode": 0.1},
            **{"was_cut": False, "epochs": 0, "model_bytes": 10, "peak_memory_mb": 600.0},
            **{"signal_settings": {"als": {"factors": 32}}, "weights": {"als": 1.0}},
            "valid": {"all_ndcg@10": settings.get("k", 0) / 1e4},
            "test": {**metrics, "coverage@10": 0.5, "gini@10": 0.5, "popularity@10": 9.0},
            "by_warmth": [None, 0.1, 0.1, 0.2, 0.2, 0.3],
            **{"users_per_second": 100.0, "wall_seconds": 2.0},
            **{"n_users": 40, "n_items": 50, "n_train": 400},
        }
        users = np.arange(1, 41, dtype=np.int32)
        np.savez(folder / "record.npz", all_users=users, all_ndcg=np.rint(value * 1e4))
        return record

    monkeypatch.setattr(cells.Bench, "fit", fit)
    return done


def arguments(folder, *others):
    usual = ["--datasets", "ml-100k", "--parts", "models", "--seeds", "1", "2", "--budget", "4"]
    return [*usual, "--work", str(folder / "work"), "--out", str(folder / "out"), *others]


MODELS = ("--models", "HybridFusion", "ItemKNN", "EASE", "popularity")


@pytest.mark.parametrize(
    ("suite", "protocols"), [("quick", ["random"]), ("full", list(grid.PROTOCOLS))]
)
def test_a_suite_has_its_protocols_where_the_data_allow_them(suite, protocols):
    args = parse(["--suite", suite, "--datasets", "ml-100k", "citeulike-a"])
    found = {name: [] for name in args.datasets}
    for cell, _ in cells_of(args):
        found[cell.dataset].append(cell.protocol)
    assert list(dict.fromkeys(found["ml-100k"])) == protocols
    unordered = [name for name in protocols if name != "leave_one_out"]
    assert list(dict.fromkeys(found["citeulike-a"])) == unordered


def test_a_stopped_run_goes_on_where_it_was(tmp_path, fake_fits, monkeypatch, capsys):
    whole = cells.Results.write

    def stop(self, stem, *others):
        if stem.endswith("popularity"):
            raise KeyboardInterrupt
        whole(self, stem, *others)

    with monkeypatch.context() as patched:
        patched.setattr(cells.Results, "write", stop)
        assert main(arguments(tmp_path, *MODELS)) == 130
    before = [cell for cell, _ in fake_fits]
    fake_fits.clear()
    assert main(arguments(tmp_path, *MODELS)) == 0
    after = [cell for cell, _ in fake_fits]
    assert {cell for cell in after if cell in before} == {before[-1]}  # the one that was stopped
    fake_fits.clear()
    assert main(arguments(tmp_path, *MODELS)) == 0
    assert not fake_fits
    capsys.readouterr()


def test_the_first_seed_is_tuned_on_and_the_others_fit_its_best(tmp_path, fake_fits):
    assert main(arguments(tmp_path, *MODELS)) == 0
    knn = [(cell.seed, settings) for cell, settings in fake_fits if cell.model == "ItemKNN"]
    assert knn[0] == (1, {"k": 100, "shrink": 0.0})
    assert len({json.dumps(settings) for seed, settings in knn if seed == 1}) == 4
    best = max((settings for seed, settings in knn if seed == 1), key=lambda s: s["k"])
    assert [settings for seed, settings in knn if seed == 2] == [best]
    ours = [settings for cell, settings in fake_fits if cell.model == grid.OURS]
    assert ours == [{"signal_search_trials": 0}, {"als_factors": 32, "signal_search_trials": 0}]


def test_a_cell_that_fails_is_a_hole_in_the_report(tmp_path, fake_fits, capsys):
    assert main(arguments(tmp_path, *MODELS)) == 0
    text = (tmp_path / "out" / "REPORT.md").read_text()
    assert "EASE: no more memory (ml-100k random 1)" in text
    assert "| ItemKNN | 2 |" in text
    fake_fits.clear()
    assert main(arguments(tmp_path, *MODELS, "--retry_failed")) == 0
    assert {cell.model for cell, _ in fake_fits} == {"EASE"}
    capsys.readouterr()


def test_results_of_another_version_are_kept_and_not_mixed_in(tmp_path, fake_fits, capsys):
    assert main(arguments(tmp_path, *MODELS)) == 0
    out = tmp_path / "out"
    for file in out.glob("*itemknn.json"):
        cell = json.loads(file.read_text())
        file.write_text(json.dumps({**cell, "version": "0.0.1"}))
    assert main([*arguments(tmp_path), "--report"]) == 0
    assert "2 files of other versions are kept and not mixed in" in capsys.readouterr().out
    assert "| ItemKNN |" not in (out / "REPORT.md").read_text()
    fake_fits.clear()
    assert main(arguments(tmp_path, *MODELS)) == 0
    assert {cell.model for cell, _ in fake_fits} == {"ItemKNN"}
    assert (out / "ml-100k-random-1-itemknn.v0.0.1-format2.json").is_file()
    assert "| ItemKNN | 2 |" in (out / "REPORT.md").read_text()
    capsys.readouterr()


def test_a_report_is_of_the_newest_version_where_the_running_one_has_none(tmp_path, fake_fits):
    assert main(arguments(tmp_path, *MODELS)) == 0
    for file in (tmp_path / "out").glob("*.json"):
        cell = json.loads(file.read_text())
        version = "0.0.9" if cell["model"] == "popularity" else "0.0.10"
        file.write_text(json.dumps({**cell, "version": version}))
    assert Collected.read(tmp_path / "out").version == "0.0.10"


def test_a_complete_grid_takes_what_fits_took_in_proportion_where_none_was(tmp_path, fake_fits):
    """Five fits of one setting, 24 of a searched one; online-retail is twice ml-100k."""
    only = ("--seeds", "1", "--models", "HybridFusion", "ItemKNN")
    assert main(arguments(tmp_path, *only)) == 0
    out = tmp_path / "out"
    for stem, hours in (("hybridfusion", 1), ("itemknn", 2)):
        file = out / f"ml-100k-random-1-{stem}.json"
        cell = json.loads(file.read_text())
        cell["fits"] = [{**cell["fits"][0], "seconds": 3600 * hours}]
        file.write_text(json.dumps(cell))
        if stem == "hybridfusion":
            cell |= {"dataset": "online-retail", "n_train": 2 * cell["n_train"]}
            cell["fits"][0]["seconds"] = 3600 * 3
            (out / "online-retail-random-1-hybridfusion.json").write_text(json.dumps(cell))
            users = file.with_suffix(".npz").read_bytes()
            (out / "online-retail-random-1-hybridfusion.npz").write_bytes(users)
    text = " ".join(report.text_of(Collected.read(out), out, out).split())
    assert f"would take about {5 * (1 + 3) + 24 * (2 + 4)} hours" in text
    assert "the 1 pairs of model and data set that have not been measured" in text
    assert "nowhere measured: ALS, BPR," in text


def test_the_same_cells_give_the_same_report(tmp_path, fake_fits, capsys):
    assert main(arguments(tmp_path, *MODELS)) == 0
    out = tmp_path / "out"
    text = (out / "REPORT.md").read_text()
    assert report.text_of(Collected.read(out), out, out) == text
    figure = (tmp_path / "out-forest-random.svg").read_bytes()
    assert main([*arguments(tmp_path), "--report"]) == 0
    assert (tmp_path / "out-forest-random.svg").read_bytes() == figure
    capsys.readouterr()


def test_the_cap_ends_a_cell_and_says_so(tmp_path, fake_fits, monkeypatch, capsys):
    clock = itertools.count(step=10)
    monkeypatch.setattr(cells, "perf_counter", lambda: next(clock))
    chosen = ("--models", "HybridFusion", "ItemKNN", "--minutes", "1")
    assert main(arguments(tmp_path, *chosen)) == 0
    cell = json.loads((tmp_path / "out" / "ml-100k-random-1-itemknn.json").read_text())
    assert 0 < len(cell["fits"]) < cell["wanted_fits"] == 4
    assert "the cap of 1 minutes left" in (tmp_path / "out" / "REPORT.md").read_text()
    capsys.readouterr()


def test_a_space_that_is_used_up_ends_the_search():
    entry = grid.MODELS["TextIntent"]
    search = cells.Search(entry.space, entry.starts, 20)
    asked = []
    while (settings := search.ask()) is not None:
        asked.append(settings["encoder"])
        search.tell(0.1)
    assert asked == ["bert,lexical", "bert", "lexical"]
    assert search.wanted == 3


def test_every_peer_starts_from_settings_of_its_space():
    for name, entry in grid.MODELS.items():
        for start in entry.starts:
            assert set(start) <= set(entry.space), name
            for key, value in start.items():
                assert entry.space[key].distribution._contains(
                    entry.space[key].distribution.to_internal_repr(value)
                ), (name, key)


def test_ease_by_users_scores_as_ease_does():
    history = (np.random.default_rng(4).random((20, 35)) < 0.2).astype(np.float32)
    inverse = np.linalg.inv(history.T @ history + 7.0 * np.eye(35))
    similarity = -inverse / np.diag(inverse)
    np.fill_diagonal(similarity, 0)
    data = SimpleNamespace(binary=scipy.sparse.coo_matrix(history))
    scores, _ = externals.ease_by_users(data, seed=0, n_threads=1, reg_weight=7.0)
    asked = np.array([3, 0, 19])
    np.testing.assert_allclose(scores(asked), (history @ similarity)[asked], atol=1e-6)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (("--models", "LightGNC"), "did you mean `LightGCN`?"),
        (("--datasets", "ml-100"), "did you mean `ml-100k`?"),
        (("--data_path", "/nowhere/at/all"), "there is no folder /nowhere/at/all"),
        (("--budget", "-1"), "`budget` must be above 0, got -1"),
        (
            ("--parts", "costs", "--sizes", "1e4"),
            "`sizes` must be at least 100,000, which ml-100k has; got 10,000",
        ),
        (("--parts", "costs", "--like", "ml-100"), "`like`: there is no data set `ml-100`"),
        (("--report",), "there is no result in out"),
    ],
)
def test_bad_input_is_told_in_one_line(tmp_path, capsys, given, said):
    assert main([*arguments(tmp_path), *given]) == 2
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 1
    assert said in told[0]


def test_a_file_that_is_no_cell_is_named(tmp_path, fake_fits, capsys):
    out = tmp_path / "out"
    out.mkdir()
    (out / "ml-100k-random-1-itemknn.json").write_text("{")
    assert main(arguments(tmp_path, *MODELS)) == 2
    assert "ml-100k-random-1-itemknn.json cannot be read" in capsys.readouterr().err


def test_users_values_that_are_lost_are_named(tmp_path, fake_fits, capsys):
    assert main(arguments(tmp_path, *MODELS)) == 0
    (tmp_path / "out" / "ml-100k-random-2-itemknn.npz").unlink()
    assert main([*arguments(tmp_path), "--report"]) == 2
    assert "ml-100k-random-2-itemknn.npz" in capsys.readouterr().err


def test_cells_of_another_budget_are_not_taken_for_this_one(tmp_path, fake_fits, capsys):
    assert main(arguments(tmp_path, *MODELS)) == 0
    assert main(arguments(tmp_path, *MODELS, "--budget", "9")) == 2
    assert "was made with 4 fits" in capsys.readouterr().err


@pytest.mark.parametrize("rows_of", [text_stand_ins.noise, text_stand_ins.hashed])
def test_what_stands_in_for_bert_is_an_encoder(rows_of):
    check_encoder(text_stand_ins.StandIn("stand_in", rows_of, EncoderOptions()))


def test_texts_are_shuffled_in_a_copy(tmp_path):
    place = data.Place(None, tmp_path)
    name, settings = place.of("ml-100k", "random", 3, shuffled=True)
    folder = settings["data_path"] / name
    lines = (folder / f"{name}.item").read_text().splitlines()
    source = data.places.source_of("ml-100k", None)
    original = (source / "ml-100k.item").read_text().splitlines()
    assert lines != original
    assert [line.split("\t")[0] for line in lines] == [line.split("\t")[0] for line in original]
    titles = [sorted(line.split("\t")[1] for line in of) for of in (lines, original)]
    assert titles[0] == titles[1]


def test_a_real_cell(tmp_path):
    """One process for the command, one for its fit."""
    given = arguments(tmp_path, "--seeds", "2020", "--models", "popularity")
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.compare", *given],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    cell = json.loads((tmp_path / "out" / "ml-100k-random-2020-popularity.json").read_text())
    # What a rightly counted popularity gets on this split.
    assert cell["test"]["all_ndcg@10"] == pytest.approx(0.1418, abs=0.002)
    users, values = cells.Results(tmp_path / "out").per_user(
        "ml-100k-random-2020-popularity", "all"
    )
    assert values.mean() == pytest.approx(cell["test"]["all_ndcg@10"], abs=1e-4)
    assert (np.diff(users) > 0).all()


def test_a_fit_that_fails_says_why_and_one_that_is_late_is_ended(tmp_path):
    values = {"model": "ALS", "dataset": "nowhere", "seconds": 60, "slices": "all"}
    with pytest.raises(RuntimeError, match="nowhere"):
        fit_process.run(values, tmp_path, 120)
    with pytest.raises(TimeoutError):
        fit_process.run({**values, "dataset": "ml-100k"}, tmp_path, 0.01)


# Costs


def cost_cell(size, power=1.0):
    times = size / 1e5
    phases = {"load": 2.0 * times**power, "signals": 10.0 * times, "tune": 1.0, "encode": 3 * times}
    return {
        **{"costs": "tables", "like": "ml-100k", "size": size, "base_mb": 400.0},
        "seconds": phases,
        "peak_mb": {name: 400 + 100 * times for name in phases},
        "total_seconds": sum(phases.values()),
        **{"n_interactions": size, "n_users": int(900 * times), "n_items": int(1600 * times)},
        **{"texts": {"encoded": int(1600 * times), "cached": 0}, "table_bytes": 10**7 * times},
        "ranking": {"seconds": times, "users": 900},
        "scoring": [{"dimensions": 64, "users": 900, "ours": 95.0, "implicit": 100.0}],
    }


def test_exponents_are_those_of_the_costs(tmp_path):
    results = cells.Results(tmp_path / "out")
    for size in (100_000, 300_000, 1_000_000, 3_000_000):
        results.write(f"costs-tables-ml-100k-{size}", cost_cell(size, power=1.5))
    results.write("costs-slim-ml-100k-9", {"costs": "slim", "size": 9, "failed": "full"})
    lines = report.text_of(Collected.read(tmp_path / "out"), tmp_path / "out", tmp_path / "out")
    (fitted,) = (line for line in lines.splitlines() if line.startswith("| exponent |  |  |"))
    found = [cell.strip() for cell in fitted.split("|")]
    assert found[4:8] == ["1.50", "1.00", "1.00", "0.00"]  # load, encode, signals, tune
    assert found[10:14] == ["1.00"] * 4  # their memory
    assert "| 10 | 1 | 16 | 13 |" in lines  # signals, tune, all, all without encoding
    assert "| of the larger half |" in lines
    assert "| 48,000 | 64 | 95 | 100 | 0.95 |" in lines
    assert "costs, slim: full (9 interactions)" in lines


def test_real_costs(tmp_path, capsys):
    """A size is grown, fitted in a process of its own, ranked and scored."""
    shop = tmp_path / "data" / "shop"
    growth.write(real_set(), len(real_set().users), 0, shop)
    work, out = tmp_path / "work", tmp_path / "out"
    given = ["--data_path", str(shop.parent), "--work", str(work), "--out", str(out)]
    given += ["--parts", "costs", "--like", "shop", "--sizes", "1500"]
    assert main(given) == 0
    cell, alone = Collected.read(out).costs
    assert (cell["costs"], alone["costs"]) == ("tables", "slim")
    assert cell["n_interactions"] == alone["n_interactions"] == pytest.approx(1500, rel=0.02)
    assert cell["seconds"].keys() >= {"load", "encode", "signals", "tune"}
    assert cell["texts"]["encoded"] > 0
    assert all(part["ours"] > 0 and part["implicit"] > 0 for part in cell["scoring"])
    assert not any((work / "grown").iterdir())
    capsys.readouterr()
    assert main(given) == 0  # they are there
    assert capsys.readouterr().out.startswith("REPORT.md: 2 cells")


# What is committed

COMMITTED = ROOT / "benchmarks" / "results" / grid.SUITES["full"].folder


@pytest.mark.skipif(not COMMITTED.is_dir(), reason="the full suite has not been run")
def test_no_number_of_the_report_is_typed_by_hand():
    collected = Collected.read(COMMITTED)
    file = ROOT / "benchmarks" / "REPORT.md"
    assert report.text_of(collected, COMMITTED, file.parent) == file.read_text()
    text = readme.FILE.read_text()
    assert readme.with_table(text, "compare", report.readme_lines(collected)) == text


@pytest.mark.parametrize(("seconds", "n_batches"), [(-1, 1), (60, 5)])
def test_a_round_of_training_ends_with_its_time_and_learns_at_least_once(seconds, n_batches):
    loader = torch.utils.data.DataLoader(range(10), batch_size=2)
    end_by(loader, perf_counter() + seconds)
    assert [len(batch) for batch in loader] == [2] * n_batches
    assert len(loader) == 5

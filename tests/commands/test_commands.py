"""The commands as users type them, on RecBole's bundled ml-100k."""

import json
import os
import subprocess
import sys

import pytest

from recbole_llm.cli import parse_arguments
from recbole_llm.errors import SettingsError


def run_recbole(folder, *arguments):
    return subprocess.run(
        [sys.executable, "-m", "recbole_llm.cli", "--dataset=ml-100k", *arguments],
        cwd=folder,
        env={**os.environ, "XDG_CACHE_HOME": str(folder / "cache")},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


def record_of(folder, *arguments):
    file = folder / "record.json"
    done = run_recbole(folder, f"--result_file={file}", "--show_progress=False", *arguments)
    assert done.returncode == 0, done.stderr
    return json.loads(file.read_text()), done.stderr


def test_hybrid_is_ahead_of_item_knn_and_repeats_and_encodes_nothing_twice(tmp_path):
    # The README's first command runs all signals.
    signals = "als,item_item,text_intent,popularity"
    hybrid = ("--model=HybridFusion", f"--signals={signals}", "--signal_search_trials=2")
    first, log = record_of(tmp_path, *hybrid)
    item_knn, _ = record_of(tmp_path, "--model=ItemKNN")
    assert first["test"]["ndcg@10"] > item_knn["test"]["ndcg@10"] + 0.03
    assert first["valid"]["ndcg@10"] > max(first["signals"].values())
    assert first["valid"]["ndcg@10"] > first["signals"]["popularity"] + 0.1
    assert sum(first["weights"].values()) == pytest.approx(1)
    assert first["texts"]["cached"] == 0 < first["texts"]["encoded"]
    assert "weights: als" in log
    assert "valid_metric is not set: tuning on NDCG@10" in log
    again, _ = record_of(tmp_path, *hybrid)
    assert again["test"] == pytest.approx(first["test"], abs=1e-6)
    assert again["texts"] == {"encoded": 0, "cached": first["texts"]["encoded"]}
    assert set(item_knn) == set(first)


@pytest.mark.parametrize("model", ["ALS", "LightFM", "TextIntent"])
def test_each_model_runs_by_its_name(tmp_path, model):
    record, _ = record_of(
        tmp_path,
        f"--model={model}",
        "--signal_search_trials=2",
        *(["--encoder=lexical"] * (model == "TextIntent")),
    )
    floor = {"ALS": 0.3, "LightFM": 0.25, "TextIntent": 0.03}[model]
    assert record["test"]["ndcg@10"] > floor


def test_recboles_own_functions_run_and_reload_the_model_in_a_fresh_process(tmp_path):
    run = (
        "import sys; sys.argv = sys.argv[:1]\n"
        "import recbole_llm\n"
        "from recbole.quick_start import run_recbole\n"
        "r = run_recbole(model='HybridFusion', dataset='ml-100k',"
        " config_dict={'signals': 'als,popularity', 'signal_search_trials': 1,"
        " 'show_progress': False})\n"
        "assert 'torch._dynamo' not in sys.modules, 'a second of each start'\n"
        "print(r['test_result']['ndcg@10'])\n"
    )
    reload = (
        "import sys, glob; sys.argv = sys.argv[:1]\n"
        "import recbole_llm\n"
        "from recbole.quick_start import load_data_and_model\n"
        "from recbole.utils import get_trainer\n"
        "config, model, _, _, _, test = load_data_and_model(glob.glob('saved/*.pth')[0])\n"
        "trainer = get_trainer(config['MODEL_TYPE'], config['model'])(config, model)\n"
        "trainer.eval_collector.data_collect(test)\n"
        "print(trainer.evaluate(test, load_best_model=False)['ndcg@10'])\n"
    )
    values = []
    for code in (run, reload):
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        values.append(float(done.stdout.split()[-1]))
    assert values[0] == values[1] > 0.3


def test_a_setting_with_a_blank_is_refused():
    with pytest.raises(SettingsError, match="dropped"):
        parse_arguments(["--model", "ALS", "--seed", "3"])
    assert parse_arguments(["--model", "ALS", "--seed=3"]) == {"model": "ALS", "seed": "3"}

"""RecBole's own models, end to end with the mends: trained, saved, reloaded, loaded again."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from recbole_llm.host import quirks

SETTINGS = {
    "epochs": 1,
    "train_batch_size": 16_384,
    "eval_batch_size": 400_000,
    "show_progress": False,
    "state": "ERROR",
}
LOAD_AND_EVALUATE = f"""
import json, sys
sys.path.insert(0, {str(Path(quirks.__file__).parents[2])!r})
from recbole_llm.host import quirks
quirks.apply()
from recbole.quick_start import load_data_and_model
from recbole.utils import get_trainer

results = {{}}
for path in sys.argv[1:]:
    config, model, _, _, _, test_data = load_data_and_model(path)
    trainer = get_trainer(config["MODEL_TYPE"], config["model"])(config, model)
    results[config["model"]] = trainer.evaluate(test_data, load_best_model=False)
print("RESULTS", json.dumps(results))
"""
MODELS = ["BPR", "EASE", "LightGCN", "NGCF"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """What ``run_recbole`` returns on the test part, for each model, and the checkpoints."""
    folder = tmp_path_factory.mktemp("stock_models")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["test"])
        patch.chdir(folder)
        quirks.apply()
        from recbole.quick_start import run_recbole

        results = {
            model: dict(run_recbole(model, "ml-100k", config_dict=SETTINGS.copy())["test_result"])
            for model in MODELS
        }
    return results, sorted((folder / "saved").glob("*.pth"))


@pytest.mark.parametrize("model", MODELS)
def test_model_is_trained_saved_and_reloaded(trained, model):
    results, checkpoints = trained

    assert results[model]["ndcg@10"] > 0
    assert any(path.name.startswith(f"{model}-") for path in checkpoints)


def test_ease_is_as_good_as_published(trained):
    # Closed form, so the same on every machine: the mends change no result.
    assert trained[0]["EASE"]["ndcg@10"] == pytest.approx(0.3295, abs=0.0005)


def test_checkpoints_give_the_same_results_in_a_fresh_process(trained, tmp_path):
    results, checkpoints = trained

    done = subprocess.run(
        [sys.executable, "-c", LOAD_AND_EVALUATE, *map(str, checkpoints)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )

    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.rpartition("RESULTS ")[2]) == results

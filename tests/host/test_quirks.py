"""Each quirk: stock RecBole, in a process without us, breaks; with its mend it works."""

import importlib
import json
import os
import pickle
import re
import subprocess
import sys
import warnings
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import scipy.sparse
import torch

from recbole_llm.host import quirks

SMALL_RUN = {
    "dataset": "ml-100k",
    "epochs": 1,
    "user_inter_num_interval": "[20,25)",
    "eval_batch_size": 200_000,
    "show_progress": False,
    "state": "ERROR",
}
STOCK = f"""
import json, sys
from pathlib import Path
from types import SimpleNamespace

sys.argv = ["test"]
errors = {{}}

def attempt(name, action):
    try:
        action()
        errors[name] = None
    except Exception as error:
        errors[name] = type(error).__name__ + ": " + str(error).splitlines()[0]

import scipy.sparse
from recbole.quick_start import load_data_and_model, run_recbole
from recbole.trainer import Trainer

def run(model, **settings):
    run_recbole(model=model, config_dict={{**{SMALL_RUN!r}, **settings}})

# A field of words, which RecBole remaps with `agg(len)`.
words = {{"inter": ["user_id", "item_id"], "item": ["item_id", "class"]}}
attempt("evaluate", lambda: run("BPR", load_col=words))
checkpoint = str(next(Path("saved").glob("BPR*.pth")))
trainer = SimpleNamespace(device="cpu")
attempt("resume_checkpoint", lambda: Trainer.resume_checkpoint(trainer, checkpoint))
attempt("load_data_and_model", lambda: load_data_and_model(checkpoint))
pretrained = {{"train_method": "after_pretrain", "pre_model_path": checkpoint}}
attempt("pretrained", lambda: run("ConvNCF", **pretrained))
attempt("autoencoder", lambda: run("MultiVAE", train_neg_sample_args=None))
attempt("dok_matrix", lambda: run("GCMC"))
# Further than the missing method, for the warnings of a graph model.
scipy.sparse.dok_matrix._update = lambda matrix, values: matrix._dict.update(values)
attempt("graph", lambda: run("GCMC"))
print("ERRORS", json.dumps(errors))
"""
EVALUATE_IN_FRESH_PROCESS = """
import sys
from recbole.quick_start import load_data_and_model
from recbole.trainer import Trainer
config, model, _, _, _, test_data = load_data_and_model(sys.argv.pop())
print(Trainer(config, model).evaluate(test_data, load_best_model=False))
"""
# The package that is tested here, whether it is installed or not.
IMPORT_QUIRKS = f"""
import sys
sys.path.insert(0, {str(Path(quirks.__file__).parents[2])!r})
from recbole_llm.host import quirks
"""


class StockRun(NamedTuple):
    errors: dict[str, str]
    stderr: str
    checkpoint: Path


def run_python(code: str, *arguments: str, cwd: Path, **environment: str):
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )


@pytest.fixture(scope="module")
def stock(tmp_path_factory) -> StockRun:
    """RecBole without this package: its errors, its warnings and a checkpoint."""
    folder = tmp_path_factory.mktemp("stock")
    done = run_python(STOCK, cwd=folder)
    assert done.returncode == 0, done.stderr
    errors = json.loads(done.stdout.rpartition("ERRORS ")[2])
    return StockRun(errors, done.stderr, next((folder / "saved").glob("BPR*.pth")))


@pytest.fixture(autouse=True)
def mended(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "argv", ["test"])
    monkeypatch.chdir(tmp_path)  # for RecBole's log, saved and log_tensorboard
    quirks.apply()


@pytest.mark.parametrize(
    "name", ["evaluate", "resume_checkpoint", "load_data_and_model", "pretrained"]
)
def test_stock_recbole_cannot_read_its_checkpoints(stock, name):
    assert stock.errors[name].startswith("UnpicklingError: Weights only load failed")


def test_stock_recbole_misses_dok_matrix_update(stock):
    assert stock.errors["dok_matrix"].startswith("AttributeError")
    assert "_update" in stock.errors["dok_matrix"]


def test_stock_recbole_misses_np_float_where_a_config_is_unpickled(stock, tmp_path):
    done = run_python(
        EVALUATE_IN_FRESH_PROCESS,
        str(stock.checkpoint),
        cwd=tmp_path,
        TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD="1",
    )

    assert "has no attribute 'float'" in done.stderr


def test_checkpoint_is_evaluated_in_a_fresh_process_without_a_warning(stock, tmp_path):
    code = (
        IMPORT_QUIRKS + "quirks.quiet_host_warnings(); quirks.apply()" + EVALUATE_IN_FRESH_PROCESS
    )

    done = run_python(code, str(stock.checkpoint), cwd=tmp_path)

    assert "ndcg@10" in done.stdout, done.stderr
    assert "Warning" not in done.stderr


def test_evaluate_and_resume_read_a_checkpoint(stock):
    from recbole.quick_start import load_data_and_model
    from recbole.trainer import Trainer

    config, model, _, _, _, test_data = load_data_and_model(stock.checkpoint)
    trainer = Trainer(config, model)
    trainer.resume_checkpoint(stock.checkpoint)

    assert trainer.start_epoch == 1
    assert trainer.evaluate(test_data, model_file=stock.checkpoint)


def test_model_starts_from_the_checkpoint_of_another(stock):
    from recbole.model.general_recommender import ConvNCF
    from recbole.quick_start import load_data_and_model

    config, bpr, _, train_data, _, _ = load_data_and_model(stock.checkpoint)
    for key, value in {
        "train_method": "after_pretrain",
        "pre_model_path": str(stock.checkpoint),
        "cnn_channels": [1, 4],
        "cnn_kernels": [2],
        "cnn_strides": [2],
        "dropout_prob": 0.1,
        "reg_weights": [0.1, 0.1],
    }.items():
        config[key] = value

    model = ConvNCF(config, train_data.dataset)

    assert torch.equal(model.item_embedding.weight, bpr.item_embedding.weight)


def test_torch_load_is_unchanged_for_everyone_else(stock):
    assert torch.load is torch.serialization.load
    with pytest.raises(pickle.UnpicklingError, match="Weights only load failed"):
        torch.load(stock.checkpoint)


def test_every_module_that_calls_torch_load_is_mended():
    import recbole

    root = Path(recbole.__file__).parent
    callers = {
        ".".join(("recbole", *path.relative_to(root).with_suffix("").parts))
        for path in root.rglob("*.py")
        if "torch.load(" in path.read_text(encoding="utf-8")
    }

    assert callers == quirks._MODELS_THAT_LOAD_CHECKPOINTS | {
        "recbole.trainer.trainer",
        "recbole.quick_start.quick_start",
    }


@pytest.mark.parametrize("name", sorted(quirks._MODELS_THAT_LOAD_CHECKPOINTS))
@pytest.mark.parametrize("imported", ["after", "before"])
def test_model_trusts_checkpoints_whenever_it_is_imported(name, imported, monkeypatch):
    if imported == "before":
        monkeypatch.setattr(importlib.import_module(name), "torch", torch)
        quirks.apply()

    module = importlib.import_module(name)

    assert module.torch.load is not torch.load
    assert module.torch.nn is torch.nn


def test_checkpoint_of_another_device_is_loaded_on_the_cpu(stock, monkeypatch):
    if torch.cuda.is_available():
        pytest.skip("needs a machine without CUDA")
    from recbole.quick_start import load_data_and_model

    checkpoint = torch.load(stock.checkpoint, weights_only=False)
    checkpoint["config"]["device"] = torch.device("cuda")
    checkpoint["other_parameter"] = {"extra": torch.ones(2)}  # set as an attribute
    with monkeypatch.context() as context:
        context.setattr(torch.serialization, "location_tag", lambda _: "cuda:0")
        torch.save(checkpoint, "from_cuda.pth", pickle_protocol=4)
    with pytest.raises(RuntimeError, match="CUDA"):
        torch.load("from_cuda.pth", weights_only=False)

    config, model, *_ = load_data_and_model("from_cuda.pth")

    assert config["device"] == torch.device("cpu")
    assert model.device == torch.device("cpu")
    assert {parameter.device.type for parameter in model.parameters()} == {"cpu"}
    assert model.extra.device == torch.device("cpu")


def test_a_storage_stays_on_a_device_that_is_there():
    storage = torch.ones(2).untyped_storage()

    assert quirks._on_cpu_if_unusable(storage, "cpu") is None
    assert quirks._on_cpu_if_unusable(storage, "cuda:99") is storage
    assert quirks._on_cpu_if_unusable(storage, "no such device") is storage


def test_dok_matrix_takes_a_dict():
    matrix = scipy.sparse.dok_matrix((2, 3), dtype=np.float32)

    matrix._update({(0, 1): 1, (1, 2): 1})

    assert matrix.nnz == 2
    assert matrix.dtype == np.float32
    np.testing.assert_array_equal(matrix.toarray(), [[0, 1, 0], [0, 0, 1]])


def test_second_apply_changes_nothing():
    import recbole.quick_start
    import recbole.trainer.trainer

    def state():
        return (
            list(sys.meta_path),
            recbole.trainer.trainer.torch,
            recbole.quick_start.load_data_and_model,
            scipy.sparse.dok_matrix._update,
        )

    before = state()
    quirks.apply()

    assert state() == before


def test_apply_imports_no_model(tmp_path):
    code = IMPORT_QUIRKS + (
        "import recbole.quick_start; before = set(sys.modules); quirks.apply();"
        "print([name for name in set(sys.modules) - before if name.startswith('recbole.model.')])"
    )

    assert run_python(code, cwd=tmp_path).stdout.strip() == "[]"


@pytest.mark.parametrize(("message", "category", "module"), quirks._HOST_WARNINGS)
def test_stock_recbole_still_warns(stock, message, category, module):
    shown = [line for line in stock.stderr.splitlines() if f"{category.__name__}: " in line]

    assert any(
        re.search(message, line) and re.search(module.replace(r"\.", "/"), line) for line in shown
    )


@pytest.mark.parametrize(
    ("message", "category", "module", "shown"),
    [
        ("pkg_resources is deprecated as an API. See", UserWarning, "ray._private.parameter", 0),
        ("pkg_resources is deprecated as an API. See", UserWarning, "my_module", 1),
        ("ray is deprecated", UserWarning, "ray._private.parameter", 1),
        (
            "`torch.cuda.amp.GradScaler(args...)` is deprecated. Please use",
            FutureWarning,
            "recbole.trainer.trainer",
            0,
        ),
        (
            "`torch.cuda.amp.GradScaler(args...)` is deprecated. Please use",
            FutureWarning,
            "recbole_llm.host.trainer",
            1,
        ),
        ("invalid value encountered", RuntimeWarning, "recbole.model.layers", 1),
    ],
)
def test_only_known_warnings_of_the_host_are_hidden(message, category, module, shown):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        quirks.quiet_host_warnings()
        warnings.warn_explicit(message, category, "file.py", 1, module=module)

    assert len(caught) == shown


@pytest.mark.filterwarnings("ignore:Using a non-tuple sequence")
def test_list_of_index_tensors_still_indexes_pairs():
    # The autoencoders' `predict` relies on it; once torch reads the list as a tensor, hiding its
    # warning is wrong, and the models need a mend.
    scores, rows, columns = torch.rand(3, 4), torch.tensor([0, 2]), torch.tensor([1, 3])

    assert torch.equal(scores[[rows, columns]], scores[rows, columns])


def test_hiding_twice_adds_no_filter():
    with warnings.catch_warnings():
        quirks.quiet_host_warnings()
        once = list(warnings.filters)
        quirks.quiet_host_warnings()

        assert sorted(map(str, warnings.filters)) == sorted(map(str, once))

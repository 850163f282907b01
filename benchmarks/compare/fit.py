"""One fit in a process of its own, evaluated on validation and test.

python -m benchmarks.compare.fit --model=… --dataset=… --seconds=… --slices=all --result_file=…
The record goes to `result_file`, each test user's NDCG@10 to an .npz beside it.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
from recbole.utils import get_model, get_trainer, init_logger, init_seed

from benchmarks.compare import externals, text_stand_ins
from benchmarks.compare.measure import evaluation, n_bytes, peak_memory_mb
from benchmarks.timed_training import fit_within
from recbole_llm.cli import parse_arguments
from recbole_llm.host.config import prepare
from recbole_llm.host.run import load_parts, read_config


def train(config: Any, parts: Any, seconds: float, started: float) -> tuple[Any, dict[str, Any]]:
    """A model of RecBole's or ours as its best epoch left it, and how it came about."""
    train_part, valid, _ = parts
    init_seed(config["seed"], config["reproducibility"])
    begin = perf_counter()  # some of RecBole's models learn as they are made
    model = get_model(config["model"])(config, train_part._dataset).to(config["device"])
    trainer = get_trainer(config["MODEL_TYPE"], config["model"])(config, model)
    epochs, was_cut = fit_within(trainer, train_part, valid, started, seconds)
    fitted = perf_counter() - begin
    saved = torch.load(trainer.saved_model_file, map_location="cpu", weights_only=False)
    model.load_state_dict(saved["state_dict"])
    model.load_other_parameter(saved.get("other_parameter"))
    model.eval()
    report = getattr(model, "report", None)
    facts = {
        "seconds": {"fit": fitted, **(report.seconds if report else {})},
        "was_cut": was_cut,
        "epochs": len(epochs),
        "model_bytes": n_bytes(model.state_dict()) + n_bytes(model.other_parameter() or {}),
    }
    if report:
        facts |= {"signals": report.signals, "signal_settings": report.settings}
        facts |= {"weights": report.weights, "texts": report.texts}
    return model, facts


def main() -> None:
    values: dict[str, Any] = parse_arguments(sys.argv[1:])
    seconds, file = float(values.pop("seconds")), Path(values.pop("result_file"))
    slices = values.pop("slices").split(",")
    name, dataset = values.pop("model"), values.pop("dataset")
    started = perf_counter()
    text_stand_ins.register_all()
    own: dict[str, Any] = {}
    host = name
    if name in externals.MODELS:
        own, values = externals.split_settings(name, values)
        host = externals.HOST
    config = read_config(host, dataset, [], values)
    init_seed(config["seed"], config["reproducibility"])
    init_logger(config)
    prepare(config)
    parts = load_parts(config)
    loaded = perf_counter() - started
    if name in externals.MODELS:
        model, facts = externals.fit(name, own, config, parts[0]._dataset)
    else:
        model, facts = train(config, parts, seconds, started)
    facts["seconds"]["load"] = loaded
    facts["peak_memory_mb"] = peak_memory_mb()
    dataset_ = parts[0]._dataset
    valid, test = (evaluation(model, part, dataset_, config["seed"]) for part in parts[1:])
    tables = {}
    for part in slices:
        users, found = test.per_user(part)
        tables[f"{part}_users"] = users.astype(np.int32)
        tables[f"{part}_ndcg"] = np.rint(found * 1e4).astype(np.uint16)
    np.savez_compressed(file.with_suffix(".npz"), **tables)
    record = {
        **facts,
        "valid": valid.metrics(),
        "test": test.metrics(),
        "by_warmth": test.by_warmth(),
        "users_per_second": len(test.users) / test.seconds,
        "peak_memory_with_scoring_mb": peak_memory_mb(),
        "n_users": dataset_.user_num - 1,
        "n_items": dataset_.item_num - 1,
        "n_train": len(dataset_),
    }
    file.write_text(json.dumps(record) + "\n")


if __name__ == "__main__":
    main()
